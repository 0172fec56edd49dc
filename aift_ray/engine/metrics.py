"""What a run leaves for people and scripts: metrics, a plot, progress."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aift_ray.engine.trackers import Trackers

METRICS, PROGRESS = "metrics.jsonl", ".progress.json"
# files that ask a run to stop with a checkpoint, to save one and go on, or to end as if done
STOP, SAVE, END = ".stop", ".save", ".end"
# what callbacks are told of, a line each
EVENTS = ".events.jsonl"
# what is measured where answers are compared, by TRL's names
ACCURACY = "rewards/accuracies"
COMPARED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    ACCURACY,
    "logps/chosen",
    "logps/rejected",
    "kl",
)
# where completions are generated, beside names with a slash
GENERATED = ("reward", "reward_std", "frac_reward_zero_std", "entropy")


def task_scores(line: dict[str, Any]) -> dict[str, Any]:
    """The scores of tasks in a line, named TASK/SCORE; a step has none."""
    if "loss" in line:
        return {}
    named = {name: value for name, value in line.items() if "/" in name}
    return {name: value for name, value in named.items() if not name.startswith("eval_")}


class Metrics:
    """Writes a line a logged step; goes on after `step`, dropping later lines of a killed run.

    Args:
        trackers: get each line too.
    """

    def __init__(self, folder: Path, step: int, trackers: Trackers | None = None) -> None:
        self._file = folder / METRICS
        self._progress = folder / PROGRESS
        self._shown = 0.0
        keep_until(self._file, step)
        self._lines = self._file.open("a", encoding="utf-8")
        self.trackers = trackers

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; it is on its way to the disk when this returns."""
        self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._lines.flush()
        if self.trackers:
            self.trackers.log(line)

    def show(self, progress: dict[str, Any], now: bool = False) -> None:
        """Tell whoever watches how far the run is, twice a second at most."""
        if not now and time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        write_json(self._progress, progress)

    def close(self) -> None:
        """Finish the files."""
        self._lines.close()


def tell(folder: Path, event: str, content: dict[str, Any]) -> None:
    """Write down for callbacks what has happened."""
    line = json.dumps({"event": event} | content, ensure_ascii=False) + "\n"
    with (folder / EVENTS).open("a", encoding="utf-8") as file:
        file.write(line)


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of a metrics file that lie after `step`, and a half-written last one."""
    if path.is_file():
        kept = [line for line in read(path) if line["step"] <= step]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        replace(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a half-written last one is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file in one go."""
    replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """Replace a text file in one go: a reader sees the old or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _spikes(lines: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Steps whose loss is far above that of the twenty logged steps before."""
    points = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    found = []
    for at in range(5, len(points)):
        before = [loss for _, loss in points[max(0, at - 20) : at]]
        middle = statistics.median(before)
        spread = statistics.median(abs(loss - middle) for loss in before)
        if points[at][1] > middle + max(6 * spread, 0.2 * middle):
            found.append(points[at])
    return found


def plot(folder: Path) -> None:
    """Draw loss.png from metrics.jsonl: training and evaluation loss by step.

    Where answers are compared, or completions generated, beside it a panel for each kind of metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read(folder / METRICS)
    found = {
        label: curves
        for label, curves in _PANELS.items()
        if any(line.get(name) is not None for line in lines for name, _, _ in curves)
    }
    columns = 2 if found else 1
    rows = -(-(1 + len(found)) // columns)
    size = (8, 4.5) if not found else (6.5 * columns, 3.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes, *others = figure.subplots(rows, columns, squeeze=False).flatten()
    # of generated completions the loss of an evaluation is its reward, negated
    generated = any("clip_ratio/region_mean" in line for line in lines)
    _draw(axes, lines, _LOSSES[:1] if generated else _LOSSES)
    # and that of a step goes up and down around 0
    spikes = [] if generated else _spikes(lines)
    if spikes:
        axes.plot(*zip(*spikes, strict=True), "x", color="black", label="spike")
    axes.set_ylabel(_unit(lines))
    if axes.dataLim.y0 >= 0:
        # robust DPO has losses below 0
        axes.set_ylim(bottom=0)
    for each in others[len(found) :]:
        each.set_axis_off()
    for each, (label, curves) in zip(others, found.items(), strict=False):
        _draw(each, lines, curves)
        each.set_ylabel(label)
    for each in (axes, *others[: len(found)]):
        each.set_xlabel("step")
        each.grid(alpha=0.3)
        if each.lines:
            each.legend(loc="best", framealpha=0.6)
    figure.savefig(folder / "loss.png", dpi=120)


# (name in the lines, label, style)
Curves = tuple[tuple[str, str, dict[str, Any]], ...]


def _trained(color: str) -> dict[str, Any]:
    return {"color": color, "linewidth": 1.2}


def _tested(color: str) -> dict[str, Any]:
    return {"color": color, "marker": "o", "markersize": 4}


_BLUE, _ORANGE, _GREY, _RED = "#7aa6d8", "#d8a67a", "#555555", "#c0392b"
_LOSSES: Curves = (
    ("loss", "training loss", _trained(_BLUE)),
    ("eval_loss", "evaluation loss", {"color": _RED, "marker": "o"}),
)
# of objectives other than sft: the label of a panel, and its curves
_PANELS: dict[str, Curves] = {
    "reward": (
        ("reward", "training", _trained(_BLUE)),
        ("reward_std", "standard deviation", _trained(_GREY)),
        ("eval_reward", "evaluation", _tested(_RED)),
        ("rewards/chosen", "chosen", _trained(_BLUE)),
        ("rewards/rejected", "rejected", _trained(_ORANGE)),
        ("rewards/margins", "margin", _trained(_GREY)),
        ("eval_rewards/margins", "margin, evaluation", _tested(_RED)),
    ),
    "accuracy of the rewards": (
        ("rewards/accuracies", "training", _trained(_BLUE)),
        ("eval_rewards/accuracies", "evaluation", _tested(_RED)),
    ),
    "log-probability of an answer": (
        ("logps/chosen", "chosen", _trained(_BLUE)),
        ("logps/rejected", "rejected", _trained(_ORANGE)),
        ("eval_logps/chosen", "chosen, evaluation", _tested(_BLUE)),
        ("eval_logps/rejected", "rejected, evaluation", _tested(_ORANGE)),
    ),
    "KL or mean log ratio to the reference": (
        ("kl", "training", _trained(_BLUE)),
        ("eval_kl", "evaluation", _tested(_RED)),
    ),
    "tokens of a completion": (
        ("completions/mean_length", "mean", _trained(_BLUE)),
        ("completions/max_length", "longest", _trained(_GREY)),
        ("eval_completions/mean_length", "mean, evaluation", _tested(_RED)),
    ),
    "entropy (nats)": (("entropy", "training", _trained(_BLUE)),),
    "share of the completions or tokens": (
        ("completions/clipped_ratio", "completions cut off", _trained(_GREY)),
        ("frac_reward_zero_std", "prompts without spread", _trained(_ORANGE)),
        ("clip_ratio/region_mean", "tokens clipped", _trained(_BLUE)),
    ),
}


def _unit(lines: list[dict[str, Any]]) -> str:
    names = {name for line in lines for name in line}
    if "reward" in names:
        return "loss"
    return "loss per comparison" if names & set(COMPARED) else "loss per supervised token (nats)"


def _draw(
    axes: Axes, lines: list[dict[str, Any]], curves: Iterable[tuple[str, str, dict[str, Any]]]
) -> None:
    """Draw curves of (name in the lines, label, style)."""
    for name, label, style in curves:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
