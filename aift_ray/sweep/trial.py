"""One trial of a sweep as it lies on disk: a training run's folder, and why it ended."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aift_ray.engine import metrics
from aift_ray.runs import run_dir
from aift_ray.sweep.space import Choices

TRIALS, _RECORD = "trials", "trial.json"
RUNNING, DONE, STOPPED, INTERRUPTED = "running", "done", "stopped", "interrupted"
# a failure is one of these two
BAD_SETTING, CRASHED = "bad setting", "crashed"


@dataclass
class Trial:
    """A trial.

    Attributes:
        folder: `trials/N`, with a training run's own contents.
        choices: what was drawn for it.
        status: running; done; stopped, by the scheduler; interrupted, with the sweep; bad setting,
            refused or failed by what it was told to do; crashed, by anything else.
        why: what failed, one line.
    """

    number: int
    folder: Path
    choices: Choices
    status: str = RUNNING
    why: str = ""

    @property
    def settled(self) -> bool:
        """Whether a sweep that is gone on with leaves it as it is."""
        return self.status in (DONE, STOPPED, BAD_SETTING)

    def save(self) -> None:
        """Write it into its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"choices": self.choices, "status": self.status, "why": self.why}
        metrics.write_json(self.folder / _RECORD, about)

    def evaluations(self, metric: str) -> list[dict[str, Any]]:
        """The lines of its metrics that hold `metric`, in order."""
        return evaluations(self.folder, metric)

    def score(self, metric: str) -> float | None:
        """The metric of its final model, or the last there was; None without a finite one."""
        value = run_dir.summary(self.folder).get(metric) if self.status == DONE else None
        lines = self.evaluations(metric)
        value = lines[-1][metric] if value is None and lines else value
        return value if value is not None and math.isfinite(value) else None


def evaluations(folder: Path, metric: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics that hold `metric`, in order."""
    path = folder / metrics.METRICS
    lines = metrics.read(path) if path.is_file() else []
    return [line for line in lines if line.get(metric) is not None]


def load(sweep: Path) -> list[Trial]:
    """The trials of a sweep's folder, by number."""
    found = []
    for path in (sweep / TRIALS).glob(f"*/{_RECORD}"):
        about = json.loads(path.read_text(encoding="utf-8"))
        found.append(Trial(int(path.parent.name), path.parent, **about))
    return sorted(found, key=lambda trial: trial.number)


def best(trials: list[Trial], metric: str, better: str) -> Trial | None:
    """The best of the trials that ran to their end; None where none did."""
    scores = {t.number: t.score(metric) for t in trials if t.status == DONE}
    finite = {number: score for number, score in scores.items() if score is not None}
    if not finite:
        return None
    first = (min if better == "min" else max)(finite, key=lambda number: finite[number])
    return next(trial for trial in trials if trial.number == first)
