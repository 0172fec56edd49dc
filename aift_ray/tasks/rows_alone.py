"""Tasks that a data file makes without a task file: the keys of each row tell its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.row_kinds import strings
from aift_ray.data.readers.row_schema import WrongRow, find_form, make_example
from aift_ray.errors import Problem
from aift_ray.tasks.data_files import Row, read_rows
from aift_ray.tasks.items import Item, make_items
from aift_ray.tasks.task import DEFAULTS, Task

# in place of flags of training
_OTHER_ROWS = "write rows as for training, rows of question, choices and label, or a task file"
_SHOWN = 20


class RowOptions(Protocol):
    """Settings that act on rows without a task file, see `EvaluateConfig`."""

    limit: int
    chat: bool | None


@dataclass(frozen=True)
class RowsTask:
    """A task of the rows of one kind.

    Attributes:
        mixed: the file has rows of other kinds too.
    """

    task: Task
    items: list[Item]
    mixed: bool


def load(
    path: Path, options: RowOptions, judged: Sequence[str], problems: list[Problem]
) -> list[RowsTask]:
    """The task of a file, or one for each kind of its rows; what is wrong is added to `problems`.

    Args:
        judged: scores of a judge that answers get too.
    """
    rows = read_rows(path, problems)
    by_kind: dict[str, list[Row]] = {}
    chosen = any("choices" in row for _, row in rows)
    for row in rows:
        by_kind.setdefault(_kind(row[1], chosen), []).append(row)
    file, mixed = path.name.split(".")[0], len(by_kind) > 1
    found: list[RowsTask] = []
    for kind in ("generate", "choice", "text"):
        if kind not in by_kind:
            continue
        of_kind = by_kind[kind][: options.limit or None]
        ending = {"generate": "", "choice": "_choices", "text": "_texts"}[kind] if mixed else ""
        task = _task(f"{file}{ending}", kind, options, judged)
        if kind == "generate":
            items = _answered(path, of_kind, problems)
        else:
            items = make_items(task, [(str(path), row) for row in of_kind], [], problems)
        found.append(RowsTask(task, items, mixed))
    return found


def _kind(row: dict[str, object], chosen: bool) -> str:
    """The kind of task that a row belongs to.

    Args:
        chosen: some row of the file has choices.
    """
    if "choices" in row:
        return "choice"
    try:
        return "text" if find_form(row).kind == "text" else "generate"
    except WrongRow:
        # told with the others of its kind
        return "choice" if chosen and "question" in row else "generate"


def _task(name: str, kind: str, options: RowOptions, judged: Sequence[str]) -> Task:
    if kind == "choice":
        task = Task(name=name, kind="choice", prompt="{{ question }}", choices="choices")
        return task.model_copy(update={"delimiter": "\n", "chat": bool(options.chat)})
    if kind == "text":
        return Task(name=name, kind="text")
    scores = [*judged, *DEFAULTS["generate"]]
    return Task(name=name, prompt="{{ instruction }}", chat=True, scores=scores)


def _answered(path: Path, rows: Sequence[Row], problems: list[Problem]) -> list[Item]:
    """Rows as `train` takes them: asked in the very prompts of training."""
    found: list[Item] = []
    wrong: list[Problem] = []
    for index, (line, row) in enumerate(rows):
        example = make_example(row, path.name, line)
        if isinstance(example, Fault):
            remedy = _OTHER_ROWS if "--data." in example.remedy else example.remedy
            wrong.append(Problem(f"{path}:{line}", example.reason, remedy))
            continue
        answers, fields = (_answer(example),), tuple(strings(row))
        found.append(Item(index, f"{path.name}:{line}", example, answers=answers, fields=fields))
    problems += wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        problems.append(Problem(str(path), f"{len(wrong) - _SHOWN} more rows are wrong"))
    return found


def _answer(example: Example) -> str:
    return example.messages[-1].content if example.kind == "messages" else example.output
