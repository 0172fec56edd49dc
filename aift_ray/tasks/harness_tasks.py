"""Tasks of lm-evaluation-harness, described for a run through the harness itself."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aift_ray.errors import Problem
from aift_ray.tasks.items import Item
from aift_ray.tasks.lm_eval_compat import filter_names
from aift_ray.tasks.task import Task

if TYPE_CHECKING:
    from lm_eval.api.task import Task as LmEvalTask

PREFIX = "lm_eval:"


@dataclass(frozen=True)
class HarnessTask:
    """What the harness is asked to run.

    Attributes:
        spec: the task's name, or a YAML file of the harness.
        num_few_shot: None: the task's own.
        limit: rows, the first ones; 0: all.
    """

    spec: str
    num_few_shot: int | None
    chat: bool
    limit: int


class HarnessOptions(Protocol):
    """Settings that act on tasks of the harness, see `EvaluateConfig`."""

    limit: int
    num_few_shot: int | None
    chat: bool | None


def load(
    name: str, options: HarnessOptions, problems: list[Problem]
) -> list[tuple[Task, list[Item], HarnessTask]]:
    """The task `lm_eval:NAME`, or those of the group of that name, with an item for each row.

    Scores are the task's metrics that are means over rows, named METRIC, or METRIC,FILTER where
    the task has several filters; the others are told in `problems`.
    """
    where, spec = f"task {name}", name.removeprefix(PREFIX)
    if not find_spec("lm_eval"):
        what = "needs lm-evaluation-harness, which is not installed"
        problems.append(Problem(where, what, 'pip install "aift-ray[lm-eval]"'))
        return []
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if not Path(spec).is_file() and spec not in manager.all_tasks:
        near = difflib.get_close_matches(spec, manager.all_tasks, 1)
        remedy = f"did you mean {PREFIX}{near[0]}?" if near else "lm-eval ls tasks lists them"
        problems.append(Problem(where, f"the harness has no task {spec}", remedy))
        return []
    try:
        tasks: dict[str, Any] = manager.load([spec])["tasks"]
        described = {each: _described(task) for each, task in tasks.items()}
    except Exception as error:
        # of the data set, of the hub, or of the task's own code
        what = f"the harness can't load it: {type(error).__name__}: {str(error)[:300]}"
        remedy = "its data come from the Hugging Face Hub, or from the files that it names"
        problems.append(Problem(where, what, remedy))
        return []
    found = []
    for each, (rows, scores) in described.items():
        if not scores:
            what = f"no metric of {each} is a mean over rows"
            problems.append(Problem(where, what, "run it with lm-eval"))
            continue
        number = min(rows, options.limit) if options.limit else rows
        task = Task(name=each, prompt="-", source=f"lm-evaluation-harness: {spec}", scores=scores)
        items = [Item(at, f"{each}:{at + 1}", "") for at in range(number)]
        own = spec if len(described) == 1 else each
        run = HarnessTask(own, options.num_few_shot, bool(options.chat), options.limit)
        found.append((task, items, run))
    return found


def _described(task: LmEvalTask) -> tuple[int, list[str]]:
    """Rows of a task of the harness, and the names of its scores."""
    better, filters = task.higher_is_better(), filter_names(task)
    means = [
        metric
        for metric, aggregation in task.aggregation().items()
        if getattr(aggregation, "__name__", "") in ("mean", "nanmean") and better.get(metric, True)
    ]
    return len(task.eval_docs), [score_name(m, f, filters) for f in filters for m in means]


def score_name(metric: str, filter_name: str, filters: list[str]) -> str:
    """A metric's name, with its filter where there are several."""
    return metric if len(filters) == 1 else f"{metric},{filter_name}"
