"""Libraries that scores need beside those that are always there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from aift_ray.errors import Problem
from aift_ray.tasks.task_files import LoadedTask

_NEEDS = {
    "character_f1": "rapidfuzz",
    "rouge_l": "sacrebleu",
    "chrf": "sacrebleu",
    "bleu": "sacrebleu",
}


def missing(tasks: Sequence[LoadedTask]) -> list[Problem]:
    """Scores of tasks whose libraries are not installed."""
    remedy = 'pip install "aift-ray[evaluate]"'
    return [
        Problem(each.where(), f"{score} needs {_NEEDS[score]}, not installed", remedy)
        for each in tasks
        for score in each.task.computed
        if score in _NEEDS and not find_spec(_NEEDS[score])
    ]
