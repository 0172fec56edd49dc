"""A row of a data file, checked: the kind that its keys name, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from difflib import get_close_matches

from aift_ray.config import DataConfig
from aift_ray.data.examples import Example, Fault, Kind, Message
from aift_ray.data.readers import row_keys
from aift_ray.data.readers.column_names import suggestion
from aift_ray.data.readers.turns import holds, read_turns, unread
from aift_ray.data.readers.wrong_row import (
    WrongRow,
    did_you_mean,
    kind_of,
    listed,
    not_blank,
    shown,
    string,
)
from aift_ray.errors import ConfigError, Problem

__all__ = [
    "ROW_FORMATS",
    "FORM_OF_KEY",
    "ROW_KEYS",
    "WrongRow",
    "find_form",
    "make_example",
    "shown",
]

# read beside the keys of any kind of row
ROW_KEYS = (*row_keys.ROW_KEYS, *row_keys.MEDIA)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The keys of one kind of row; a form's name is its first key."""

    kind: Kind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, the required ones first."""
        return self.required + self.optional


ROW_FORMATS = (
    RowFormat("instruction", ("instruction", "output"), ("input",)),
    RowFormat("messages", ("messages",)),
    RowFormat("messages", ("conversations",)),
    RowFormat("prompt", ("prompt", "completion")),
    RowFormat("text", ("text",)),
)
FORM_OF_KEY = {key: form for form in ROW_FORMATS for key in form.keys}
# what rows that compare or judge answers hold besides
COMPARING_KEYS = ("chosen", "rejected", "label", "kto_tag", "margin")
_ALL_KEYS = (*FORM_OF_KEY, *COMPARING_KEYS)
_NAMEABLE = (*_ALL_KEYS, *row_keys.ROW_KEYS)
EXPECTED = (
    "instruction and output; or messages; or conversations; or prompt and completion; or text"
)


def check_columns(config: DataConfig) -> None:
    """Refuse columns that are named for what is no key of a row, as a ConfigError."""
    problems = [
        Problem(
            "data.columns",
            f"{shown(key)} is no key of a row: write KEY=COLUMN",
            _meant(key, column) or f"keys are {', '.join(_NAMEABLE)}",
        )
        for key, column in config.columns.items()
        if key not in _ALL_KEYS and key not in ROW_KEYS
    ]
    if problems:
        raise ConfigError(problems)


def _meant(key: str, column: str) -> str:
    near = get_close_matches(key, _NAMEABLE, 1, 0.75)
    if near:
        return f"did you mean --data.columns {near[0]}={column}?"
    return f"did you mean --data.columns {column}={key}?" if column in FORM_OF_KEY else ""


def make_example(row: object, file: str, line: int) -> Example | Fault:
    """The example that a row is, or the fault that says why it is none."""
    try:
        if not isinstance(row, dict):
            raise WrongRow(f"the row is {kind_of(row)}, expected an object", f"expected {EXPECTED}")
        form = find_form(row)
        found = _example(form, row, file, line)
        ignored = _ignored(form, row)
        return replace(found, ignored=ignored) if ignored else found
    except WrongRow as wrong:
        return Fault(file, line, wrong.reason, wrong.remedy)


def find_form(keys: Collection[str], noun: str = "key") -> RowFormat:
    """The form that `keys` name; further keys are allowed beside a complete one.

    Raises:
        WrongRow: no known key, keys of two forms, or a missing key; `noun` says what keys are.
    """
    forms = list(dict.fromkeys(FORM_OF_KEY[key] for key in keys if key in FORM_OF_KEY))
    if not forms:
        raise _preference(keys) or _no_known_key(keys, noun)
    if len(forms) > 1:
        names = " and ".join(
            ", ".join(key for key in keys if FORM_OF_KEY.get(key) is form) for form in forms
        )
        raise WrongRow(f"{noun}s of two kinds of row: {names}", f"keep the {noun}s of one kind")
    missing = [key for key in forms[0].required if key not in keys]
    if missing:
        pair = _preference(keys)
        if pair:
            raise pair
        needed = f"this kind of row needs the {noun}s {' and '.join(forms[0].required)}"
        raise WrongRow(
            f"the {noun} {' and '.join(missing)} is missing; found {listed(keys)}",
            (did_you_mean([key for key in keys if key not in FORM_OF_KEY], missing) or needed)
            + _flag(keys),
        )
    return forms[0]


def _preference(keys: Collection[str]) -> WrongRow | None:
    """What to tell of a row that compares two answers, where answers are trained."""
    if "chosen" not in keys or "rejected" not in keys:
        return None
    what = "chosen and rejected compare two answers, and objective sft trains one"
    return WrongRow(what, "give --objective dpo, or another one that compares answers")


def _no_known_key(keys: Collection[str], noun: str) -> WrongRow:
    if not keys:
        return WrongRow(f"the row has no {noun}", f"expected {EXPECTED}")
    remedy = did_you_mean(keys, list(FORM_OF_KEY)) or f"expected {EXPECTED}"
    remedy += _flag(keys)
    return WrongRow(f"unknown {noun}s: found {listed(keys)}", remedy)


def _flag(keys: Collection[str]) -> str:
    """The flag that says which of the keys or columns are meant, where it can be guessed."""
    flag = suggestion([key for key in keys if key])
    return f"; or say which they are, for example {flag}" if flag else ""


_KNOWN = frozenset(ROW_KEYS)
_HISTORY_AS = 'write "history": [["QUESTION", "ANSWER"], ...]'


def _example(form: RowFormat, row: dict[str, object], file: str, line: int) -> Example:
    plain = _KNOWN.isdisjoint(row)
    if not plain:
        row_keys.refuse_media(row)
        row_keys.row_weight(row)
    if form.kind in ("text", "prompt"):
        unused = (
            () if plain else tuple(key for key in row_keys.CONVERSATION_KEYS if _filled(row, key))
        )
        unused += () if plain or not row_keys.thought(row) else ("reasoning_content",)
        if form.kind == "text":
            return Example("text", file, line, output=_text(row, "text"), unused=unused)
        prompt, answer = (_text(row, key) for key in form.required)
        return Example("prompt", file, line, instruction=prompt, output=answer, unused=unused)
    tools, options = ("", "") if plain else (row_keys.tools(row), row_keys.options(row))
    before = () if plain else (*_system(row), *_history(row))
    if form.kind == "messages":
        if not plain and row_keys.thought(row):
            what = "reasoning_content belongs into the message from assistant"
            raise WrongRow(what, "move it there")
        messages = read_turns(form.required[0], row[form.required[0]], before)
        return Example("messages", file, line, messages, tools=tools, options=options)
    instruction, answer = (_text(row, key) for key in form.required)
    given = row.get("input")
    extra = "" if given is None else string(given, "input")
    thought = "" if plain else row_keys.thought(row)
    return Example(
        "instruction", file, line, before, instruction, extra, answer, thought, tools, options
    )


def _ignored(form: RowFormat, row: dict[str, object]) -> tuple[str, ...]:
    """Keys of a row and of its turns that hold something, and that nothing reads."""
    own = form.keys if len(row) > len(form.required) else tuple(row)
    found = [key for key in row if key not in own and key not in _KNOWN and holds(row[key])]
    if form.kind == "messages":
        found += [f"{form.required[0]}.{key}" for key in unread(form.required[0], row)]
    return tuple(found)


def _filled(row: dict[str, object], key: str) -> bool:
    value = row.get(key)
    return bool(value) and not (isinstance(value, str) and not value.strip())


def _text(row: dict[str, object], key: str) -> str:
    return not_blank(string(row[key], key), key)


def _system(row: dict[str, object]) -> tuple[Message, ...]:
    """The row's own system text; an empty one is none."""
    key = row_keys.given_key(row, "system", "system_prompt")
    value = row.get(key)
    text = "" if value is None else string(value, key)
    return (Message("system", text),) if text.strip() else ()


def _history(row: dict[str, object]) -> list[Message]:
    """Earlier turns as LLaMA-Factory's Alpaca form has them: pairs of question and answer."""
    found = row_keys.parsed(row.get("history"), "history")
    if not found:
        return []
    if not isinstance(found, list):
        raise WrongRow(f"history is {kind_of(found)}, expected a list of pairs", _HISTORY_AS)
    turns = []
    for number, pair in enumerate(found, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            what = f"history: pair {number} is {kind_of(pair)}"
            raise WrongRow(f"{what}, expected a list of a question and its answer", _HISTORY_AS)
        for role, value in zip(("user", "assistant"), pair, strict=True):
            name = f"history: pair {number}: {role}"
            text = not_blank(string(value, name), name)
            turns.append(Message(role, text))
    return turns
