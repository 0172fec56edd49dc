"""The tasks that a model is scored on while it is trained."""

from __future__ import annotations

from aift_ray.errors import DataError, Problem
from aift_ray.tasks import score_libraries
from aift_ray.tasks.task import CODE
from aift_ray.tasks.task_files import LoadedTask, TaskOptions, load_tasks


def load(config: TaskOptions) -> list[LoadedTask]:
    """The tasks of the settings.

    Raises:
        DataError: every mistake in them, and scores that training can't compute.
    """
    loaded = load_tasks(config)
    tasks = [each.task for each in loaded]
    remedy = "leave it out, and score the trained model with aift-ray evaluate"
    problems = [
        Problem(f"task {task.name}", f"{score} needs a model that judges", remedy)
        for task in tasks
        for score in task.judged
    ]
    problems += [
        Problem(f"task {task.name}", f"{CODE} runs what a model writes", remedy)
        for task in tasks
        if task.coded
    ]
    problems += [
        Problem(f"task {each.task.name}", "is run by the harness, on a trained model alone", remedy)
        for each in loaded
        if each.harness
    ]
    problems += score_libraries.missing(tasks)
    if problems:
        raise DataError(problems)
    return loaded
