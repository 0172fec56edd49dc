"""A task from its YAML file, with the line of each of its fields; every mistake by its line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aift_ray.errors import ConfigError, Problem
from aift_ray.tasks.task import Task

# FILE:LINE, and what follows
_PLACE = re.compile(r"(.*?):(\d+)(?::.*)?", re.DOTALL)
# what stands for a wrong field, so that rows can be held against the others
_NEUTRAL: dict[str, Any] = {
    "name": "task",
    "prompt": "-",
    "choices": ["-", "--"],
    "label": "0",
    "answers": "'-'",
    "text": "'-'",
    "shot": "-",
}
# fields that a mistake is held against too
_DEPENDS = {"judge.highest": ("judge.lowest",), "program": ("scores",)}


@dataclass(frozen=True)
class TaskSource:
    """Where a task was written.

    Attributes:
        name: what the user calls it: a file, or `task NAME`.
        lines: of its file's fields, nested ones with dots.
    """

    name: str
    lines: Mapping[str, int] = field(default_factory=dict)

    def where(self, field_: str = "") -> str:
        """A field's place: `FILE:LINE: FIELD`, or the name alone of what has no lines."""
        if not self.lines:
            return self.name
        parts = field_.split(".")
        nested = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
        line = next((self.lines[each] for each in nested if each in self.lines), 1)
        return f"{self.name}:{line}: {field_}" if field_ else self.name


@dataclass(frozen=True)
class TaskFile:
    """What a YAML file says of a task.

    Attributes:
        task: its right fields, wrong ones at neutral values; None: it holds no task.
        wrong: the mistakes.
        known_kind: False: rows can't be held against the task, only looked for.
    """

    task: Task | None
    source: TaskSource
    wrong: list[Problem]
    known_kind: bool = True


def read_task(path: Path, name: str = "") -> TaskFile:
    """The task of a YAML file.

    Args:
        name: how the user calls it where its lines are not the user's; "": the file itself.
    """
    source = TaskSource(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        return TaskFile(None, source, [Problem(str(path), f"can't be read: {error.strerror}")])
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"is not UTF-8 (byte {error.object[error.start]:#04x})"
        return TaskFile(None, source, [Problem(f"{path}:{line}", what, "save it as UTF-8")])
    except yaml.YAMLError as error:
        return TaskFile(None, source, [_no_yaml(path, error)])
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        what = "holds no task, expected 'name: value' in each line"
        return TaskFile(None, source, [Problem(f"{path}:1", what)])
    repeated: list[tuple[str, int]] = []
    lines = dict(_lines(node, repeated))
    source = TaskSource(name) if name else TaskSource(str(path), lines)
    wrong = [Problem(f"{path}:{line}: {key}", "is given twice") for key, line in repeated]
    task, found, known = _task({str(key): value for key, value in content.items()})
    wrong += [Problem(source.where(each.where), each.what, each.remedy) for each in found]
    return TaskFile(task, source, wrong, known)


def _task(content: dict[str, Any]) -> tuple[Task, list[Problem], bool]:
    """The task, wrong fields at neutral values; what is wrong; whether its kind is known."""
    wrong: list[Problem] = []
    try:
        task = Task(**content)
    except ConfigError as error:
        wrong = error.problems
        task = Task(**_without(content, _fields(wrong)))
    known = "kind" not in _fields(wrong)
    found = task.contradictions() if known else task.of_any_kind()
    more = [each for each in found if not _follows(each.where, _fields(wrong))]
    if more:
        task = Task(**_without(content, _fields(wrong + more)))
    return task, wrong + more, known


def _fields(problems: Sequence[Problem]) -> set[str]:
    return {problem.where for problem in problems}


def _follows(name: str, wrong: set[str]) -> bool:
    """Whether a mistake in a field may come of those that are known."""
    return any(
        f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
        for one in (name, *_DEPENDS.get(name, ()))
        for other in wrong
    )


def _without(content: dict[str, Any], wrong: set[str]) -> dict[str, Any]:
    """The fields of a task with neutral values in place of wrong ones."""
    if "choices" in wrong:
        # it may number them
        wrong = wrong | {"label"}
    right = dict(content)
    for name in wrong:
        _leave_out(right, name)
    return {key: value for key, value in _NEUTRAL.items() if key in wrong} | right


def _leave_out(right: dict[str, Any], name: str) -> None:
    """Remove a field, a nested one from a copy of what holds it; else what holds it."""
    first, _, rest = name.partition(".")
    held = right.get(first)
    if rest and isinstance(held, dict) and rest.partition(".")[0] in held:
        right[first] = dict(held)
        _leave_out(right[first], rest)
    else:
        right.pop(first, None)


def _no_yaml(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    return Problem(where, f"is not YAML: {getattr(error, 'problem', None) or error}")


def _lines(
    node: yaml.MappingNode, repeated: list[tuple[str, int]], before: str = "", depth: int = 3
) -> Iterator[tuple[str, int]]:
    """The line of each field of a mapping, and of fields below; those given twice aside."""
    seen: set[str] = set()
    for key, value in node.value:
        name, line = f"{before}{key.value}", key.start_mark.line + 1
        if name in seen:
            repeated.append((name, line))
        seen.add(name)
        yield name, line
        if isinstance(value, yaml.MappingNode) and depth:
            yield from _lines(value, repeated, f"{name}.", depth - 1)


def by_place(problems: Iterable[Problem]) -> list[Problem]:
    """Problems each once, those of settings first, those of files by file and line."""

    def place(problem: Problem) -> tuple[str, int]:
        match = _PLACE.fullmatch(problem.where)
        return (match[1], int(match[2])) if match else ("", 0)

    return sorted(dict.fromkeys(problems), key=place)
