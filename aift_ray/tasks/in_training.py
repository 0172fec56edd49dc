"""The tasks that a model is scored on while it is trained."""

from __future__ import annotations

from aift_ray.errors import DataError, Problem
from aift_ray.tasks import score_libraries
from aift_ray.tasks.task import CODE
from aift_ray.tasks.task_files import LoadedTask, TaskOptions, read_tasks
from aift_ray.tasks.task_yaml import by_place


def load(config: TaskOptions) -> list[LoadedTask]:
    """The tasks of the settings.

    Raises:
        DataError: every mistake in them, and scores that training can't compute.
    """
    loaded, problems = read_tasks(config, section="evaluation.")
    remedy = "leave it out, and score the trained model with aift-ray evaluate"
    for each in loaded:
        for score in each.task.judged:
            problems.append(Problem(each.where(), f"{score} needs a model that judges", remedy))
        if each.task.coded:
            problems.append(Problem(each.where(), f"{CODE} runs what a model writes", remedy))
        if each.harness:
            what = "is run by the harness, on a trained model alone"
            problems.append(Problem(each.where(), what, remedy))
    problems += score_libraries.missing(loaded)
    if problems:
        raise DataError(by_place(problems))
    return loaded
