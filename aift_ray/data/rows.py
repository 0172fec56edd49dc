"""A row of a data file, checked: the kind that its keys name, or what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from aift_ray.config import DataConfig
from aift_ray.data.column_names import suggestion
from aift_ray.data.examples import Example, Fault, Kind, Message
from aift_ray.data.reading import Reading
from aift_ray.errors import ConfigError, Problem

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_KEYS = 8
_SHOWN_CHARACTERS = 40
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_ROLES = {role: role for role in ("system", "user", "assistant")}


class WrongRow(Exception):
    """A row that can't be an example.

    Args:
        reason: what was found and what was expected.
        remedy: what to do about it; may be empty.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Form:
    """The keys of one kind of row; a form's name is its first key."""

    kind: Kind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, the required ones first."""
        return self.required + self.optional


FORMS = (
    Form("instruction", ("instruction", "output"), ("input",)),
    Form("messages", ("messages",)),
    Form("messages", ("conversations",)),
    Form("prompt", ("prompt", "completion")),
    Form("text", ("text",)),
)
FORM_OF_KEY = {key: form for form in FORMS for key in form.keys}
EXPECTED = (
    "instruction and output; or messages; or conversations; or prompt and completion; or text"
)


def check_columns(config: DataConfig) -> None:
    """Refuse columns that are named for what is no key of a row, as a ConfigError."""
    problems = [
        Problem(
            "data.columns",
            f"{shown(key)} is no key of a row: write KEY=COLUMN",
            _swapped(key, column) or f"keys are {', '.join(FORM_OF_KEY)}",
        )
        for key, column in config.columns.items()
        if key not in FORM_OF_KEY
    ]
    if problems:
        raise ConfigError(problems)


def _swapped(key: str, column: str) -> str:
    return f"did you mean --data.columns {column}={key}?" if column in FORM_OF_KEY else ""


def make_example(row: object, file: str, line: int) -> Example | Fault:
    """The example that a row is, or the fault that says why it is none."""
    try:
        if not isinstance(row, dict):
            raise WrongRow(f"the row is {kind_of(row)}, expected an object")
        return _example(find_form(row), row, file, line)
    except WrongRow as wrong:
        return Fault(file, line, wrong.reason, wrong.remedy)


def read_row(row: object, file: str, line: int, reading: Reading) -> Example | Fault:
    """As `make_example`; where rows of any kind are read, one of no kind is a text."""
    found = make_example(row, file, line)
    if isinstance(found, Example) or not reading.any_row:
        return found
    text = "\0".join(_strings(row))
    return Example("text", file, line, output=text) if text.strip("\0 ") else found


def _strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def find_form(keys: Collection[str], noun: str = "key") -> Form:
    """The form that `keys` name; further keys are allowed beside a complete one.

    Raises:
        WrongRow: no known key, keys of two forms, or a missing key; `noun` says what keys are.
    """
    forms = list(dict.fromkeys(FORM_OF_KEY[key] for key in keys if key in FORM_OF_KEY))
    if not forms:
        raise _no_known_key(keys, noun)
    if len(forms) > 1:
        names = " and ".join(
            ", ".join(key for key in keys if FORM_OF_KEY.get(key) is form) for form in forms
        )
        raise WrongRow(f"{noun}s of two kinds of row: {names}", f"keep the {noun}s of one kind")
    missing = [key for key in forms[0].required if key not in keys]
    if missing:
        needed = f"this kind of row needs the {noun}s {' and '.join(forms[0].required)}"
        raise WrongRow(
            f"the {noun} {' and '.join(missing)} is missing; found {_listed(keys)}",
            (_did_you_mean([key for key in keys if key not in FORM_OF_KEY], missing) or needed)
            + _flag(keys),
        )
    return forms[0]


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def shown(text: str) -> str:
    """Text of a user in quotes, cut and made safe to print."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return json.dumps(cut, ensure_ascii=bool(_LONE_SURROGATE.search(cut)))


def _no_known_key(keys: Collection[str], noun: str) -> WrongRow:
    if not keys:
        return WrongRow(f"the row has no {noun}", f"expected {EXPECTED}")
    remedy = _did_you_mean(keys, list(FORM_OF_KEY)) or f"expected {EXPECTED}"
    remedy += _flag(keys)
    return WrongRow(f"unknown {noun}s: found {_listed(keys)}", remedy)


def _flag(keys: Collection[str]) -> str:
    """The flag that says which of the keys or columns are meant, where it can be guessed."""
    flag = suggestion([key for key in keys if key])
    return f"; or say which they are, for example {flag}" if flag else ""


def _listed(keys: Collection[str]) -> str:
    names = [shown(key) for key in list(keys)[:_SHOWN_KEYS]]
    return ", ".join(names) + (", …" if len(keys) > _SHOWN_KEYS else "")


def _did_you_mean(found: Collection[str], wanted: Sequence[str]) -> str:
    for key in found:
        near = get_close_matches(key.strip().lower()[:_SHOWN_CHARACTERS], wanted, n=1)
        if near:
            return f"found {shown(key)}: did you mean {shown(near[0])}?"
    return ""


def _example(form: Form, row: dict[str, object], file: str, line: int) -> Example:
    if form.kind == "messages":
        return Example("messages", file, line, messages=_messages(form.required[0], row))
    if form.kind == "text":
        return Example("text", file, line, output=_filled(row, "text"))
    prompt, answer = (_filled(row, key) for key in form.required)
    given = row.get("input") if form.optional else None
    extra = "" if given is None else _string(given, "input")
    return Example(form.kind, file, line, instruction=prompt, input=extra, output=answer)


def _filled(row: dict[str, object], key: str) -> str:
    return _not_blank(_string(row[key], key), key)


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise WrongRow(f"{name} is {kind_of(value)}, expected a string")
    lone = _LONE_SURROGATE.search(value)
    if lone:
        code = f"U+{ord(lone.group()):04X}"
        raise WrongRow(f"{name} holds half a character: the lone surrogate {code}")
    return value


def _not_blank(text: str, name: str) -> str:
    if not text.strip():
        raise WrongRow(f"{name} is {'only white space' if text else 'empty'}, expected text")
    return text


def _messages(key: str, row: dict[str, object]) -> tuple[Message, ...]:
    turns = row[key]
    if not isinstance(turns, list):
        raise WrongRow(f"{key} is {kind_of(turns)}, expected a list of messages")
    if not turns:
        raise WrongRow(f"{key} has no message, expected at least a user and an assistant message")
    messages = tuple(_message(key, number, turn) for number, turn in enumerate(turns, 1))
    _check_order(messages)
    return messages


def _message(key: str, number: int, turn: object) -> Message:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise WrongRow(f"{where} is {kind_of(turn)}, expected an object")
    chat = key == "messages"
    speaker, content = ("role", "content") if chat else ("from", "value")
    roles = _ROLES if chat else _SPEAKERS
    for name in (speaker, content):
        if name not in turn:
            other = ("from", "value") if chat else ("role", "content")
            remedy = (
                f"{' and '.join(other)} are the keys of {'conversations' if chat else 'messages'}"
            )
            raise WrongRow(
                f"{where}: the key {name} is missing; found {_listed(turn)}",
                remedy if other[0] in turn else _did_you_mean(turn, [name]),
            )
    said_by = _string(turn[speaker], f"{where}: {speaker}")
    if said_by not in roles:
        reason = f"{where}: unknown {speaker} {shown(said_by)}, expected one of {', '.join(roles)}"
        raise WrongRow(reason, _did_you_mean([said_by], list(roles)))
    role = roles[said_by]
    text = _content(turn[content], f"{where}: {content}")
    return Message(role, text if role == "system" else _not_blank(text, f"{where}: {content}"))


def _content(value: object, name: str) -> str:
    if not isinstance(value, list):
        return _string(value, name)
    texts = []
    for number, part in enumerate(value, 1):
        if not isinstance(part, dict) or part.get("type") != "text" or "text" not in part:
            raise WrongRow(
                f'{name}: part {number} is no text part, expected {{"type": "text", "text": ...}}'
            )
        texts.append(_string(part["text"], f"{name}: part {number}: text"))
    return "".join(texts)


def _check_order(messages: tuple[Message, ...]) -> None:
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise WrongRow("no assistant message: nothing to train on")
    system = roles[0] == "system"
    for index in range(int(system), len(roles)):
        expected = "user" if (index - system) % 2 == 0 else "assistant"
        if roles[index] == expected:
            continue
        if roles[index] == "system":
            raise WrongRow(f"message {index + 1} is a system message, which may only stand first")
        place = f"after the {roles[index - 1]} message before it" if index else "first"
        raise WrongRow(
            f"message {index + 1} is from {roles[index]}, expected {expected} {place}",
            "user and assistant speak in turn, user first",
        )
    if roles[-1] != "assistant":
        raise WrongRow(f"the last message is from {roles[-1]}, expected assistant")
