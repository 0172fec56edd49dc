"""Tasks that are right."""

from __future__ import annotations

from aift_ray.errors import DataError
from aift_ray.tasks.task_files import LoadedTask, TaskOptions, read_tasks
from aift_ray.tasks.task_yaml import by_place


def load_tasks(config: TaskOptions) -> list[LoadedTask]:
    """The tasks of the settings; DataError with every mistake in them."""
    found, problems = read_tasks(config)
    if problems:
        raise DataError(by_place(problems))
    return found
