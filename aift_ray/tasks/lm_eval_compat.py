"""Private interfaces of lm-evaluation-harness, read from lm_eval 0.4.13."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def filter_names(task: Task) -> list[str]:
    """Names of the filters of a task of the harness.

    Missing: a task's configuration does not name the filter that a task without filters has.
    """
    return [each.name for each in task._filters]
