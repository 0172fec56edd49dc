"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from aift_ray.engine.metrics import ACCURACY, METRICS, PROGRESS, task_scores
from aift_ray.engine.phases import STAGE
from aift_ray.runs.restart_causes import FAILURES, read_failures
from aift_ray.tasks.scores import shown as score_shown

_INTERVAL_S, _SHORT_S = 5.0, 3.0
_WIDE = 100


class _Told(ProgressColumn):
    """The step and what it gave, the time since the start, and what is left where it is known."""

    def render(self, task: Task) -> Text:
        since = _clock(task.elapsed or 0)
        if task.total is None:
            return Text(f"{task.description} {since}")
        text = f"step {task.completed:.0f}/{task.total:.0f} {task.description}, {since}"
        left = task.time_remaining
        return Text(text if left is None else f"{text}, {_clock(left)} left")


@contextmanager
def doing(what: str, console: Console) -> Iterator[None]:
    """Name what is done meanwhile, with the time that it has taken; where it is short, nothing."""
    if sys.stdout.isatty():
        with Progress(_Told(), console=console, transient=True) as bar:
            bar.add_task(what, total=None)
            yield
        return
    told = threading.Timer(_SHORT_S, lambda: console.print(what, markup=False))
    told.daemon = True
    told.start()
    try:
        yield
    finally:
        told.cancel()


class Follower:
    """Shows what rank 0 writes into the run's folder."""

    def __init__(self, output: Path, console: Console) -> None:
        self._output, self._console = output, console
        # what earlier workers of this run have met was shown then
        self._told = len(read_failures(output / FAILURES))
        self._metrics = _NewLines(output / METRICS)
        self._began, self._stage, self._seen, self._printed = time.time(), "", -1, 0.0
        # on a narrow terminal the words take all there is
        bar = [BarColumn(20)] if console.width >= _WIDE else []
        self._bar = Progress(_Told(), *bar, console=console)
        self._task: Any = None

    def __enter__(self) -> Follower:
        if sys.stdout.isatty():
            self._bar.start()
            self._task = self._bar.add_task("starting the workers", total=None)
        return self

    def __exit__(self, *details: object) -> None:
        self.poll(last=True)
        if self._task is not None:
            self._bar.stop()

    def poll(self, last: bool = False) -> None:
        """Show what is new."""
        for cause in read_failures(self._output / FAILURES)[self._told :]:
            self._say(f"workers lost: {cause}")
            self._told += 1
        stage = _read(self._output / STAGE).get("stage", "")
        new_stage = stage not in ("", self._stage)
        if new_stage and self._seen < 0:
            self._show_stage(stage)
        for line in self._metrics.read():
            self._show_evaluation(line)
        line = _read(self._output / PROGRESS)
        if "step" in line and line["step"] != self._seen:
            self._show_step(line, last or new_stage)
        if new_stage and stage != self._stage:
            # what comes after steps is told after the last of them
            self._show_stage(stage)

    def _show_stage(self, stage: str) -> None:
        self._stage = stage
        if self._task is None:
            self._say(f"{stage} ({time.time() - self._began:.0f} s)")
        elif self._seen < 0:
            self._bar.update(self._task, description=stage, total=None)

    def _show_evaluation(self, line: dict[str, Any]) -> None:
        found = []
        if "loss" in line:
            # of a step, whose figures are shown elsewhere
            return
        if line.get("eval_reward") is not None:
            found.append(f"held-out reward {line['eval_reward']:.4f}")
        elif line.get("eval_loss") is not None:
            found.append(f"held-out loss {line['eval_loss']:.4f}")
        if line.get(f"eval_{ACCURACY}") is not None:
            found.append(f"margin accuracy {line[f'eval_{ACCURACY}']:.1%}")
        if line.get("exact_match") is not None:
            found.append(f"exact match {line['exact_match']:.1%}")
        found += [f"{name} {score_shown(name, score)}" for name, score in task_scores(line).items()]
        if found:
            self._say(f"step {line['step']} evaluated: {', '.join(found)}")

    def _show_step(self, line: dict[str, Any], last: bool) -> None:
        if self._task is not None:
            self._bar.update(
                self._task,
                completed=line["step"],
                total=line["total_steps"],
                description=_figures(line),
            )
        elif last or self._seen < 0 or time.monotonic() - self._printed > _INTERVAL_S:
            self._printed = time.monotonic()
            self._say(f"step {line['step']}/{line['total_steps']} {_figures(line)}")
        else:
            return
        self._seen = line["step"]

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


class _NewLines:
    """The lines of a growing file of metrics that were not there before."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._file, self._step = path, 0, 0, -1
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """The whole lines since the last call, of steps that were not read before.

        A worker that goes on from a checkpoint replaces the file by one without later steps.
        """
        try:
            with self._path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                replaced = number != self._file
                file.seek(0 if replaced else self._at)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._at, self._file = len(whole) + (0 if replaced else self._at), number
        lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        found = [line for line in lines if not replaced or line["step"] > self._step]
        self._step = max([self._step, *(line["step"] for line in found)])
        return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _figures(line: dict[str, Any]) -> str:
    loss = "batch left out" if line["loss"] is None else f"loss {line['loss']:.4f}"
    more = "".join(f", {each}" for each in _generated(line))
    return f"epoch {line['epoch']:.2f}, {loss}{more}, {line['tokens_per_second']:,.0f} tokens/s"


def _generated(line: dict[str, Any]) -> list[str]:
    """The figures of a step whose completions were generated; of later steps of them fewer."""
    forms = {
        "reward": "reward {:.4f}",
        "reward_std": "spread {:.4f}",
        "completions/mean_length": "length {:.1f}",
        "kl": "KL {:.4f}",
        "clip_ratio/region_mean": "clipped {:.1%}",
        "time/generation_s": "generation {:.1f} s",
        "time/reward_s": "rewards {:.1f} s",
        "time/training_s": "training {:.1f} s",
    }
    if line.get("clip_ratio/region_mean") is None:
        return []
    return [form.format(line[name]) for name, form in forms.items() if line.get(name) is not None]
