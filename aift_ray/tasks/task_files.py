"""The tasks that a user names, read with their rows; every mistake in one error."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aift_ray.errors import Problem
from aift_ray.tasks import harness_tasks as harness
from aift_ray.tasks import rows_alone
from aift_ray.tasks.data_files import Row, find_file, is_data_file, read_rows
from aift_ray.tasks.harness_tasks import HarnessTask
from aift_ray.tasks.hub_rows import HubError, read_hub_rows
from aift_ray.tasks.items import Item, make_items
from aift_ray.tasks.task import Task
from aift_ray.tasks.task_yaml import TaskFile, TaskSource, read_task

BUILT_IN = Path(__file__).parent / "builtin"
FOLDER = "AIFT_TASKS"


@dataclass(frozen=True)
class LoadedTask:
    """A task with the items of its rows.

    Attributes:
        harness: how lm-evaluation-harness runs it; None: it is run here.
        source: where it was written; None: in no file of its own.
        mixed: a data file without a task file made it, and has rows of other kinds too.
    """

    task: Task
    items: list[Item]
    harness: HarnessTask | None = None
    source: TaskSource | None = None
    mixed: bool = False

    def where(self, field: str = "scores") -> str:
        """A field's place, for messages."""
        return self.source.where(field) if self.source else f"task {self.task.name}"


class TaskOptions(Protocol):
    """Settings of tasks, see `EvaluateConfig`."""

    tasks: list[str]
    data_dir: str | None
    limit: int
    num_few_shot: int | None
    chat: bool | None


def built_in() -> list[str]:
    """Names of the tasks that ship with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def read_tasks(
    config: TaskOptions, judged: Sequence[str] = (), section: str = ""
) -> tuple[list[LoadedTask], list[Problem]]:
    """The tasks of the settings, and every mistake in names, task files and rows.

    Args:
        judged: scores of a judge that answers to rows without a task file get too.
        section: of the settings, with a dot.
    """
    problems: list[Problem] = []
    found: list[LoadedTask] = []
    unread = False
    for name in config.tasks:
        if name.startswith(harness.PREFIX):
            several = [LoadedTask(*each) for each in harness.load(name, config, problems)]
        else:
            several = _load(name, config, judged, problems)
        unread |= not several
        for loaded in several:
            if any(each.task.name == loaded.task.name for each in found):
                what = f"two tasks are called {loaded.task.name}"
                remedy = "name each once, or give one another `name`"
                problems.append(Problem(loaded.where("name"), what, remedy))
            found.append(loaded)
    if found and not unread:
        problems += _without_effect(config, found, section)
    return found, problems


def _without_effect(
    config: TaskOptions, tasks: Sequence[LoadedTask], section: str
) -> list[Problem]:
    """Settings that are given, and change none of the tasks."""
    asked = [each for each in tasks if each.task.kind != "text"]
    of_files = any(each.harness or each.source for each in asked)
    what = "has no effect on these tasks: rows without a task file are asked"
    problems = []
    if config.num_few_shot and not of_files:
        problems.append(("num_few_shot", f"{what} without answered examples"))
    if config.chat is not None and not of_files and all(e.task.kind != "choice" for e in asked):
        problems.append(("chat", f"{what} in the prompt of training"))
    if not asked:
        problems = [(name, "has no effect on texts, which have no prompt") for name, _ in problems]
    remedy = "leave it out" + (", or write a task file" if asked else "")
    return [Problem(section + name, what, remedy) for name, what in problems]


def _load(
    name: str, config: TaskOptions, judged: Sequence[str], problems: list[Problem]
) -> list[LoadedTask]:
    path = Path(name).expanduser()
    if name in built_in():
        folder = config.data_dir or os.environ.get(FOLDER)
        read = read_task(BUILT_IN / f"{name}.yaml", f"task {name}")
        return _with_rows(read, Path(folder).expanduser() if folder else None, config, problems)
    if not path.is_file():
        near = difflib.get_close_matches(name, built_in(), 1)
        remedy = f"did you mean {near[0]}?" if near else f"built in: {', '.join(built_in())}"
        problems.append(Problem(f"task {name}", "there is no such file or built-in task", remedy))
        return []
    if path.suffix in (".yaml", ".yml"):
        return _with_rows(read_task(path), path.parent, config, problems)
    if is_data_file(path):
        several = rows_alone.load(path, config, judged, problems)
        return [LoadedTask(each.task, each.items, mixed=each.mixed) for each in several]
    what = f"unknown suffix {path.suffix!r}, expected a .yaml task or a data file"
    problems.append(Problem(f"task {name}", what))
    return []


def _with_rows(
    read: TaskFile, base: Path | None, config: TaskOptions, problems: list[Problem]
) -> list[LoadedTask]:
    """A task with its rows, also where other mistakes of its file are known already.

    Args:
        base: folder of its data files; None: none is named.
    """
    problems += read.wrong
    task, source = read.task, read.source
    if task is None:
        return []
    changes: dict[str, Any] = {}
    if config.num_few_shot is not None and task.kind != "text":
        changes["few_shot"] = task.few_shot.model_copy(update={"number": config.num_few_shot})
    if config.chat is not None and task.kind != "text":
        changes["chat"] = config.chat
    task = task.model_copy(update=changes)
    if not task.files:
        problems.append(Problem(source.where("files"), "no data file is named"))
    rows = _rows_of(task, task.files, base, source, "files", problems)
    if not read.known_kind:
        return []
    shots = _shots(task, rows, base, source, problems)
    if not task.few_shot.files and shots:
        rows = rows[: len(rows) - len(shots)]
    rows = rows[: config.limit or None]
    items = make_items(task, rows, shots, problems, source)
    return [LoadedTask(task, items, source=source)]


def _rows_of(
    task: Task,
    names: Sequence[str],
    base: Path | None,
    source: TaskSource,
    field: str,
    problems: list[Problem],
) -> list[tuple[str, Row]]:
    """The rows of the data files of a field, each with its file."""
    found: list[tuple[str, Row]] = []
    for name in names:
        path = (base or Path()) / Path(name).expanduser()
        there = find_file(path) if base or path.is_absolute() else None
        missing = Problem(source.where(field), *_missing(task, name, base))
        if there is not None:
            found += [(str(there), row) for row in read_rows(there, problems, task.columns)]
        elif name not in task.hub:
            problems.append(missing)
        else:
            try:
                found += [(name, row) for row in read_hub_rows(task.hub[name])]
            except HubError as error:
                remedy = f"{error.remedy}; or {missing.remedy}"
                problems.append(Problem(missing.where, f"{missing.what}, and {error}", remedy))
    return found


def _missing(task: Task, name: str, base: Path | None) -> tuple[str, str]:
    """What is said of a data file that is not there, and the remedy."""
    origin = f"it comes from {task.source}" if task.source else ""
    if base is None:
        what = f"needs its data file {name}"
        remedy = f"put it into a folder and give --data-dir FOLDER, or set {FOLDER}"
    else:
        what = f"its data file {base / name} is missing"
        remedy = "put it there"
    return what, f"{remedy}; {origin}" if origin else remedy


def _shots(
    task: Task,
    rows: list[tuple[str, Row]],
    base: Path | None,
    source: TaskSource,
    problems: list[Problem],
) -> list[tuple[str, Row]]:
    """The rows whose answers are shown before each prompt."""
    number, where = task.few_shot.number, source.where("few_shot.number")
    if not number:
        return []
    if not task.few_shot.files:
        # without rows the reason is told already
        if rows and len(rows) <= number:
            what = f"few_shot.number: {number} of {len(rows)} rows leave none to score"
            problems.append(Problem(where, what))
            return []
        return rows[-number:]
    there = _rows_of(task, task.few_shot.files, base, source, "few_shot.files", problems)
    if there and len(there) < number:
        what = f"{number} examples are asked for, the files hold {len(there)}"
        problems.append(Problem(where, what))
    return there[:number]
