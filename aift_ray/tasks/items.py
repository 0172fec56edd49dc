"""Rows of a task to the items that models are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aift_ray.data.examples import Example, Message
from aift_ray.data.readers.row_kinds import strings
from aift_ray.errors import Problem
from aift_ray.tasks.data_files import Row
from aift_ray.tasks.instructions import Instructions, missing
from aift_ray.tasks.row_mistakes import RowMistakes
from aift_ray.tasks.row_templates import WrongField, evaluate, render
from aift_ray.tasks.task import ANSWER_NAME, Task
from aift_ray.tasks.task_yaml import TaskSource


@dataclass(frozen=True)
class Item:
    """One row of a task, ready to be asked.

    Attributes:
        index: of the row in its task, from 0.
        place: file and line of the row.
        prompt: plain text before the answer, or the conversation whose last answer is wanted.
        choices: kind choice: the continuations that are compared.
        label: kind choice: the index of the right one.
        answers: kind generate: the right answers; kind text: the one text.
        instructions: kind generate: what IFEval's scores check.
        program: kind generate: a program with `ANSWER` in place of what is written; "": none.
        fields: the texts of the row, as its file has them.
    """

    index: int
    place: str
    prompt: str | Example
    choices: tuple[str, ...] = ()
    label: int = 0
    answers: tuple[str, ...] = ()
    instructions: Instructions | None = None
    program: str = ""
    fields: tuple[str, ...] = ()

    @property
    def shown_prompt(self) -> str:
        """The prompt as a person reads it."""
        if isinstance(self.prompt, str):
            return self.prompt
        if self.prompt.kind == "messages":
            turns = self.prompt.messages[:-1]
            return "\n".join(f"[{turn.role}] {turn.content}" for turn in turns)
        return "\n".join(part for part in (self.prompt.instruction, self.prompt.input) if part)


# a noncharacter, which no row holds
ANSWER = "\ufdd0answer\ufdd1"


def make_items(
    task: Task,
    rows: Sequence[tuple[str, Row]],
    shots: Sequence[tuple[str, Row]],
    problems: list[Problem],
    source: TaskSource | None = None,
) -> list[Item]:
    """The items of the rows of a task; what is wrong with rows is added to `problems`.

    Args:
        rows: each with its file.
        shots: the same, of the rows whose answers are shown before each prompt.
        source: where the task was written; None: in no file.
    """
    if task.instructed and (absent := missing([row for _, (_, row) in rows])):
        what, remedy = absent
        what = f"IFEval's instructions need {what}"
        problems.append(Problem(f"task {task.name}", what, remedy))
        return []
    found: list[Item] = []
    wrong = RowMistakes(task.name, source, len(shots) + len(rows), len(shots))
    examples: list[tuple[str, str]] = []
    for at, (file, (line, row)) in enumerate((*shots, *rows), -len(shots)):
        place = f"{Path(file).name}:{line}"
        try:
            if at < 0:
                examples.append(_answered(task, row))
            else:
                found.append(_item(task, at, place, row, examples))
        except ValueError as error:
            for each in (error, *_wrong_fields(task, row, shown=at < 0)):
                wrong.add(each, f"{file}:{line}")
    problems += wrong.problems()
    return found


def _wrong_fields(task: Task, row: dict[str, Any], shown: bool) -> list[ValueError]:
    """What is wrong with each field of a task for a row, whatever is wrong with the others.

    Args:
        shown: the row is an example.
    """
    checks: dict[str, list[Callable[[], object]]] = {
        "choice": [
            lambda: render(task, "prompt", row),
            lambda: _choices(task, row),
            lambda: evaluate(task, "label", row),
        ],
        "generate": [
            lambda: render(task, "prompt", row),
            lambda: _answers(task, row),
            lambda: render(task, "program", row | {ANSWER_NAME: ANSWER}),
        ],
        "text": [],
    }
    found: list[ValueError] = []
    of_kind = checks[task.kind]
    if shown:
        of_kind.append(lambda: render(task, "shot", row))
    for check in of_kind:
        try:
            check()
        except ValueError as error:
            found.append(error)
    return found


def _item(
    task: Task, index: int, place: str, row: dict[str, Any], examples: list[tuple[str, str]]
) -> Item:
    fields = tuple(strings(row))
    if task.kind == "text":
        return Item(index, place, "", answers=(_text(task, row),), fields=fields)
    choices, label, answers = _right(task, row)
    prompt: str | Example
    question = render(task, "prompt", row)
    if task.chat:
        prompt = _conversation(task, question, examples)
    else:
        parts = [text + task.delimiter + answer for text, answer in examples]
        prompt = task.description + task.separator.join([*parts, question])
    told = Instructions.of_row(row) if task.instructed else None
    program = render(task, "program", row | {ANSWER_NAME: ANSWER})
    if task.program and ANSWER not in program:
        raise WrongField("program", "expected {{ answer }} in it, without a filter or condition")
    return Item(index, place, prompt, choices, label, answers, told, program, fields)


def _conversation(task: Task, question: str, examples: list[tuple[str, str]]) -> Example:
    turns = [Message("system", task.description)] if task.description else []
    for text, answer in examples:
        turns += [Message("user", text), Message("assistant", answer)]
    # the prompt of the last answer is asked for; what stands in that answer is not read
    turns += [Message("user", question), Message("assistant", "")]
    return Example("messages", task.name, 0, messages=tuple(turns))


def _answered(task: Task, row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of an example."""
    choices, label, answers = _right(task, row)
    if task.shot:
        return render(task, "prompt", row), render(task, "shot", row)
    if not choices and not answers:
        raise WrongField("shot", "the answer of an example is not given, and answers is empty")
    return render(task, "prompt", row), choices[label] if choices else answers[0]


def _right(task: Task, row: dict[str, Any]) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Choices, label and answers of a row, those that its kind has."""
    if task.kind == "generate":
        return (), 0, _answers(task, row)
    choices = _choices(task, row)
    return choices, _label(evaluate(task, "label", row), choices, task), ()


def _choices(task: Task, row: dict[str, Any]) -> tuple[str, ...]:
    choices = task.choices
    if isinstance(choices, str):
        choices = evaluate(task, "choices", row)
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            what = f"{task.choices} is {choices!r}, expected a list of strings"
            raise WrongField("choices", what)
    if len(choices) < 2 or not all(choices):
        raise WrongField("choices", f"{choices!r}, expected two or more, none empty")
    return tuple(choices)


def _label(value: object, choices: Sequence[str], task: Task) -> int:
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    what = f"expected one of {list(choices)} or an index from 0 to {len(choices) - 1}"
    raise WrongField("label", f"{task.label} is {value!r}, {what}")


def _answers(task: Task, row: dict[str, Any]) -> tuple[str, ...]:
    if not task.answers:
        return ()
    value = evaluate(task, "answers", row)
    # the forms of SQuAD, of datasets and of its own files
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]
    values = value if isinstance(value, list) else [value]
    values = [
        each["text"] if isinstance(each, dict) and "text" in each else each for each in values
    ]
    if not values or not all(isinstance(each, str | int | float) for each in values):
        what = f"{task.answers} is {value!r}, expected a text or a list of texts"
        raise WrongField("answers", what)
    return tuple(str(each) for each in values)


def _text(task: Task, row: dict[str, Any]) -> str:
    value = evaluate(task, "text", row)
    if not isinstance(value, str) or not value.strip():
        raise WrongField("text", f"{task.text} is {value!r}, expected a text")
    return value
