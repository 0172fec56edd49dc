"""What the trials of a sweep are compared by, where it may be the score of a task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aift_ray.config import RunConfig, SweepConfig, TuneConfig
from aift_ray.config.preference_config import PREFERENCE_OBJECTIVES
from aift_ray.errors import ConfigError, Problem
from aift_ray.runs.prepare import Preparation
from aift_ray.sweep.space import Space


def check(tune: TuneConfig, prepared: Iterable[Preparation]) -> None:
    """Raise ConfigError where a trial would not compute the metric."""
    if not tune.by_task:
        return
    for one in prepared:
        scores = [f"{t.task.name}/{s}" for t in one.job.tasks for s in t.task.computed]
        if tune.metric not in scores:
            what = f"{tune.metric!r} is not computed: one of {', '.join(scores)}"
            raise ConfigError([Problem("tune.metric", what)])


def check_comparable(config: SweepConfig, space: Space) -> None:
    """Raise ConfigError where the trials' losses are of different scales."""
    scaled = [n for n in space.names if n == "objective" or n.startswith("preference.")]
    pairs = "objective" in scaled or config.objective in PREFERENCE_OBJECTIVES
    if config.tune.metric != "eval_loss" or not scaled or not pairs:
        return
    what = f"eval_loss can't be compared between trials that differ in {', '.join(scaled)}"
    raise ConfigError([Problem("tune.metric", what, "give --tune.metric eval_accuracy")])


def tasks(config: SweepConfig, space: Space) -> dict[str, Any]:
    """Settings of the tasks of all trials, which run from any folder: files by whole names."""
    found: dict[str, Any] = {}
    given = config.evaluation
    if given.tasks and "evaluation.tasks" not in space.names:
        paths = {name: Path(name).expanduser() for name in given.tasks}
        found["tasks"] = [str(p.absolute()) if p.is_file() else n for n, p in paths.items()]
    if given.data_dir:
        found["data_dir"] = str(Path(given.data_dir).expanduser().absolute())
    return found


def grace(tune: TuneConfig, configs: list[RunConfig]) -> int:
    """Steps that every trial may take; by default those until the metric is first computed."""
    every = [c.evaluation.steps if tune.by_task else c.training.eval_steps for c in configs]
    # tasks may be scored after training alone, where nobody is stopped
    return tune.grace_steps or max(1, min(every))


def described(prepared: Preparation, tune: TuneConfig) -> str:
    """The metric, and the number of rows that it is computed from."""
    task = tune.metric.partition("/")[0]
    rows = next((len(t.items) for t in prepared.job.tasks if t.task.name == task), 0)
    return f"{rows if tune.by_task else prepared.held_out} rows; {tune.metric}, {tune.better}"
