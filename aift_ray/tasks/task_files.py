"""The tasks that a user names, read with their rows; every mistake in one error."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.row_kinds import strings
from aift_ray.data.readers.row_schema import make_example
from aift_ray.errors import ConfigError, DataError, Problem
from aift_ray.tasks import harness_tasks as harness
from aift_ray.tasks.data_files import Row, find_file, is_data_file, read_rows
from aift_ray.tasks.harness_tasks import HarnessTask
from aift_ray.tasks.hub_rows import HubError, read_hub_rows
from aift_ray.tasks.items import Item, make_items
from aift_ray.tasks.task import DEFAULTS, Task

BUILT_IN = Path(__file__).parent / "builtin"
FOLDER = "AIFT_TASKS"
# in place of flags of training
_OTHER_ROWS = "write rows as for training, rows of question, choices and label, or a task file"


@dataclass(frozen=True)
class LoadedTask:
    """A task with the items of its rows.

    Attributes:
        harness: how lm-evaluation-harness runs it; None: it is run here.
    """

    task: Task
    items: list[Item]
    harness: HarnessTask | None = None


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


def load_tasks(config: TaskOptions, judged: Sequence[str] = ()) -> list[LoadedTask]:
    """The tasks of the settings.

    Args:
        judged: scores of a judge that answers to rows without a task file get too.

    Raises:
        UserError: every mistake in names, task files and rows.
    """
    problems: list[Problem] = []
    found: list[LoadedTask] = []
    for name in config.tasks:
        if name.startswith(harness.PREFIX):
            several = [LoadedTask(*each) for each in harness.load(name, config, problems)]
        else:
            one = _load(name, config, judged, problems)
            several = [one] if one else []
        for loaded in several:
            if any(each.task.name == loaded.task.name for each in found):
                what = f"two tasks are called {loaded.task.name}"
                remedy = "name each once, or give one another `name`"
                problems.append(Problem("tasks", what, remedy))
            else:
                found.append(loaded)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    return found


def _load(
    name: str, config: TaskOptions, judged: Sequence[str], problems: list[Problem]
) -> LoadedTask | None:
    path = Path(name).expanduser()
    if name in built_in():
        folder = config.data_dir or os.environ.get(FOLDER)
        return _from_yaml(BUILT_IN / f"{name}.yaml", folder, config, problems)
    if not path.is_file():
        near = difflib.get_close_matches(name, built_in(), 1)
        remedy = f"did you mean {near[0]}?" if near else f"built in: {', '.join(built_in())}"
        problems.append(Problem(f"task {name}", "there is no such file or built-in task", remedy))
        return None
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path, None, config, problems)
    if is_data_file(path):
        return _from_rows(path, config, judged, problems)
    what = f"unknown suffix {path.suffix!r}, expected a .yaml task or a data file"
    problems.append(Problem(f"task {name}", what))
    return None


def _from_yaml(
    path: Path, folder: str | None, config: TaskOptions, problems: list[Problem]
) -> LoadedTask | None:
    task, wrong = read_task(path)
    if task is None:
        problems += wrong
        return None
    changes: dict[str, Any] = {}
    if config.num_few_shot is not None and task.kind != "text":
        changes["few_shot"] = task.few_shot.model_copy(update={"number": config.num_few_shot})
    if config.chat is not None and task.kind != "text":
        changes["chat"] = config.chat
    task = task.model_copy(update=changes)
    base = path.parent if path.parent != BUILT_IN else Path(folder).expanduser() if folder else None
    rows = _rows_of(task, task.files, base, problems)
    shots = _shots(task, rows, base, problems)
    if not task.few_shot.files and shots:
        rows = rows[: len(rows) - len(shots)]
    rows = rows[: config.limit or None]
    return LoadedTask(task, make_items(task, rows, shots, problems))


def read_task(path: Path) -> tuple[Task | None, list[Problem]]:
    """The task of a YAML file, or all that is wrong with it, by line and field."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        return None, [Problem(str(path), f"can't be read: {error.strerror}")]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [Problem(str(path), f"is not YAML in UTF-8: {error}")]
    if not isinstance(content, dict):
        return None, [Problem(str(path), "holds no task, expected 'name: value'")]
    lines = _lines(text)
    try:
        task = Task(**{str(name): value for name, value in content.items()})
        wrong = task.problems()
    except ConfigError as error:
        task, wrong = None, error.problems + _also_wrong(content, error.problems)
    return (None if wrong else task), [
        Problem(_where(path, lines, problem.where), problem.what, problem.remedy)
        for problem in wrong
    ]


def _also_wrong(content: Mapping[str, Any], wrong: Sequence[Problem]) -> list[Problem]:
    """What else is wrong with a task's other fields, where its kind can be told."""
    named = {problem.where.split(".")[0] for problem in wrong}
    rest = {str(name): value for name, value in content.items() if str(name) not in named}
    if "kind" in named:
        return []
    found = Task(**{"name": "task"} | rest).problems()
    return [problem for problem in found if problem.where.split(".")[0] not in named]


def _where(path: Path, lines: Mapping[str, int], field: str) -> str:
    line = lines.get(field) or lines.get(field.split(".")[0])
    return f"{path}:{line}: {field}" if line else f"{path}: {field}"


def _lines(text: str) -> dict[str, int]:
    """The line of each field of a YAML mapping, and of fields one level below."""
    found: dict[str, int] = {}
    node = yaml.compose(text)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[key.value] = key.start_mark.line + 1
            if isinstance(value, yaml.MappingNode):
                for inner, _ in value.value:
                    found[f"{key.value}.{inner.value}"] = inner.start_mark.line + 1
    return found


def _rows_of(
    task: Task, names: Sequence[str], base: Path | None, problems: list[Problem]
) -> list[tuple[str, Row]]:
    found: list[tuple[str, Row]] = []
    if not names:
        problems.append(Problem(f"task {task.name}", "files: no data file is named"))
    for name in names:
        path = (base or Path()) / Path(name).expanduser()
        there = find_file(path) if base or path.is_absolute() else None
        if there is not None:
            found += [(there.name, row) for row in read_rows(there, problems, task.columns)]
        elif name not in task.hub:
            problems.append(_missing(task, name, base))
        else:
            try:
                found += [(name, row) for row in read_hub_rows(task.hub[name])]
            except HubError as error:
                missing = _missing(task, name, base)
                what = f"{missing.what}, and {error}"
                problems.append(
                    Problem(missing.where, what, f"{error.remedy}; or {missing.remedy}")
                )
    return found


def _missing(task: Task, name: str, base: Path | None) -> Problem:
    where = f"task {task.name}"
    origin = f"it comes from {task.source}" if task.source else ""
    if base is None:
        what = f"needs its data file {name}"
        remedy = f"put it into a folder and give --data-dir FOLDER, or set {FOLDER}"
    else:
        what = f"its data file {base / name} is missing"
        remedy = "put it there"
    return Problem(where, what, f"{remedy}; {origin}" if origin else remedy)


def _shots(
    task: Task, rows: list[tuple[str, Row]], base: Path | None, problems: list[Problem]
) -> list[tuple[str, Row]]:
    number = task.few_shot.number
    if not number:
        return []
    if not task.few_shot.files:
        # without rows the reason is told already
        if rows and len(rows) <= number:
            what = f"few_shot.number: {number} of {len(rows)} rows leave none to score"
            problems.append(Problem(f"task {task.name}", what))
            return []
        return rows[-number:]
    there = _rows_of(task, task.few_shot.files, base, problems)
    if there and len(there) < number:
        what = f"few_shot.number: {number} examples are asked for, the files hold {len(there)}"
        problems.append(Problem(f"task {task.name}", what))
    return there[:number]


def _from_rows(
    path: Path, config: TaskOptions, judged: Sequence[str], problems: list[Problem]
) -> LoadedTask | None:
    """The task that rows alone make: their keys tell its kind."""
    rows = read_rows(path, problems)[: config.limit or None]
    if not rows:
        return None
    name, first = path.name.split(".")[0], rows[0][1]
    if "choices" in first and "question" in first:
        task = Task(name=name, kind="choice", prompt="{{ question }}", choices="choices")
        task = task.model_copy(update={"delimiter": "\n", "chat": bool(config.chat)})
        return LoadedTask(task, make_items(task, [(path.name, row) for row in rows], [], problems))
    if set(first) == {"text"}:
        task = Task(name=name, kind="text")
        return LoadedTask(task, make_items(task, [(path.name, row) for row in rows], [], problems))
    scores = [*judged, *DEFAULTS["generate"]]
    task = Task(name=name, prompt="{{ instruction }}", chat=True, scores=scores)
    return LoadedTask(task, _answered_rows(path.name, rows, problems))


def _answered_rows(file: str, rows: Sequence[Row], problems: list[Problem]) -> list[Item]:
    """Rows as `train` takes them: asked in the very prompts of training."""
    found: list[Item] = []
    wrong: list[Problem] = []
    for index, (line, row) in enumerate(rows):
        example = make_example(row, file, line)
        if isinstance(example, Fault):
            remedy = _OTHER_ROWS if "--data." in example.remedy else example.remedy
            wrong.append(Problem(f"{file}:{line}", example.reason, remedy))
        elif example.kind == "text":
            wrong.append(Problem(f"{file}:{line}", "a text among rows with answers"))
        else:
            answers, fields = (_answer(example),), tuple(strings(row))
            found.append(Item(index, f"{file}:{line}", example, answers=answers, fields=fields))
    problems += wrong[:20]
    if len(wrong) > 20:
        problems.append(Problem(file, f"{len(wrong) - 20} more rows are wrong"))
    return found


def _answer(example: Example) -> str:
    return example.messages[-1].content if example.kind == "messages" else example.output
