"""Four pictures of a sweep: parallel coordinates, importance, learning curves, loss by time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aift_ray.config import TuneConfig
from aift_ray.sweep.results import settings_of
from aift_ray.sweep.trial import DONE, Trial, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = "plots"
Floats = npt.NDArray[np.float64]
_BEST, _DONE, _OTHER = "#c0392b", "#3b6ea5", "#b8bec6"
# values of a setting that are compared as groups
_GROUPS = 3


def draw(folder: Path, trials: list[Trial], names: list[str], config: TuneConfig) -> None:
    """Write the pictures into `folder`/plots; nothing where no trial was evaluated."""
    metric = config.metric
    scored = [trial for trial in trials if trial.score(metric) is not None]
    if not scored:
        return
    (folder / PLOTS).mkdir(exist_ok=True)
    first = best(trials, metric, config.better)
    drawn = {trial.number: settings_of(trial) for trial in scored}
    scores = np.array([trial.score(metric) for trial in scored], dtype=float)
    columns = {name: [drawn[trial.number].get(name) for trial in scored] for name in names}
    columns = {name: values for name, values in columns.items() if len(set(map(str, values))) > 1}
    _curves(folder / PLOTS / "learning_curves.png", scored, first, metric, by_time=False)
    _curves(folder / PLOTS / "by_time.png", scored, first, metric, by_time=True)
    if columns and len(scored) > 1:
        _parallel(folder / PLOTS / "parallel.png", scored, first, columns, scores, metric)
        _importance(folder / PLOTS / "importance.png", columns, scores, metric)


def importance(values: list[Any], scores: Floats) -> float:
    """Share of the variance of the trials' ranks that groups of like values explain, 0 to 1.

    Numbers of more than three kinds are cut into three groups of like size. With few trials it
    is above 0 for a setting without effect too.
    """
    # Optuna's fANOVA needs scikit-learn, and its PED-ANOVA more trials than most sweeps have
    ranks = np.argsort(np.argsort(scores)).astype(float)
    groups = _groups(values)
    total = float(((ranks - ranks.mean()) ** 2).sum())
    between = 0.0
    for group in np.unique(groups):
        inside = ranks[groups == group]
        between += len(inside) * float((inside.mean() - ranks.mean()) ** 2)
    return between / total if total else 0.0


def _groups(values: list[Any]) -> npt.NDArray[np.int64]:
    places, _ = _places(values)
    if len(np.unique(places)) <= _GROUPS or not _numeric(values):
        return np.unique(places, return_inverse=True)[1]
    edges = np.quantile(places, np.linspace(0, 1, _GROUPS + 1)[1:-1])
    return np.searchsorted(edges, places)


def _numeric(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _places(values: list[Any]) -> tuple[Floats, list[tuple[float, str]]]:
    """Heights between 0 and 1 for values, and labelled ticks; wide ranges by their logarithm."""
    if not _numeric(values):
        kinds = sorted(set(map(str, values)))
        heights = {kind: at / max(len(kinds) - 1, 1) for at, kind in enumerate(kinds)}
        found = np.array([heights[str(value)] for value in values])
        return found, [(at, kind) for kind, at in heights.items()]
    numbers = np.array(values, dtype=float)
    low, high = float(numbers.min()), float(numbers.max())
    wide = low > 0 and high / low > 20
    if wide:
        numbers, low, high = np.log(numbers), float(np.log(low)), float(np.log(high))
    few = np.unique(numbers)
    marks = few if len(few) <= 5 else np.linspace(low, high, 5)
    spread = (high - low) or 1.0
    ticks = [((m - low) / spread, f"{np.exp(m) if wide else m:.3g}") for m in marks]
    return (numbers - low) / spread, ticks


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _style(trial: Trial, first: Trial | None) -> dict[str, Any]:
    """The best trial in front, then those that ran to their end."""
    if first is not None and trial.number == first.number:
        return {"color": _BEST, "linewidth": 2.2, "zorder": 3}
    if trial.status == DONE:
        return {"color": _DONE, "linewidth": 1.3, "zorder": 2}
    return {"color": _OTHER, "linewidth": 1.1, "zorder": 1}


def _legend(axes: Axes | Figure, first: Trial | None, **place: Any) -> None:
    from matplotlib.lines import Line2D

    kinds = {_BEST: f"best: trial {first.number}"} if first else {}
    kinds |= {_DONE: "ran to its end", _OTHER: "stopped early or failed"}
    axes.legend(
        handles=[Line2D([], [], color=color, label=label) for color, label in kinds.items()],
        fontsize=8,
        **place,
    )


def _curves(
    path: Path, trials: list[Trial], first: Trial | None, metric: str, by_time: bool
) -> None:
    figure, axes = _figure(8, 4.5)
    began = min(trial.evaluations(metric)[0]["time"] for trial in trials)
    for trial in trials:
        lines = trial.evaluations(metric)
        across = [line["time"] - began if by_time else line["step"] for line in lines]
        values = [line[metric] for line in lines]
        axes.plot(across, values, marker="o", markersize=3, **_style(trial, first))
        axes.annotate(
            str(trial.number),
            (across[-1], values[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
        )
    values = [line[metric] for trial in trials for line in trial.evaluations(metric)]
    # a trial that diverges would press all others onto the bottom line
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds since the first evaluation of the sweep" if by_time else "step")
    axes.set_ylabel(_label(metric))
    axes.grid(alpha=0.3)
    _legend(axes, first)
    figure.savefig(path, dpi=120)


def _label(metric: str) -> str:
    known = {
        "eval_loss": "evaluation loss",
        "exact_match": "exact match (share)",
        "eval_accuracy": "margin accuracy (share)",
    }
    return known.get(metric, metric)


def _parallel(
    path: Path,
    trials: list[Trial],
    first: Trial | None,
    columns: dict[str, list[Any]],
    scores: Floats,
    metric: str,
) -> None:
    axes_of = columns | {metric: scores.tolist()}
    figure, axes = _figure(max(6.0, 1.9 * len(axes_of)), 4.8)
    heights, across = [], list(range(len(axes_of)))
    for at, values in enumerate(axes_of.values()):
        places, ticks = _places(values)
        heights.append(places)
        axes.axvline(at, color="#444444", linewidth=0.8)
        for place, label in ticks:
            axes.annotate(
                label,
                (at, place),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
                zorder=4,
            )
    for index, trial in enumerate(trials):
        axes.plot(across, [places[index] for places in heights], **_style(trial, first))
    axes.set_xticks(across, [name.rsplit(".", 1)[-1] for name in axes_of])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(axes_of) - 0.5)
    axes.set_ylim(-0.06, 1.06)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    _legend(figure, first, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def _importance(path: Path, columns: dict[str, list[Any]], scores: Floats, metric: str) -> None:
    found = sorted((importance(values, scores), name) for name, values in columns.items())
    figure, axes = _figure(7, 1.2 + 0.45 * len(found))
    bars = axes.barh([name for _, name in found], [share for share, _ in found], color=_DONE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(f"share of the variance of ranks by {metric}, {len(scores)} trials")
    figure.savefig(path, dpi=120)
