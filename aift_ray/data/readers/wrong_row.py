"""What is wrong with a row, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_KEYS = 8
_SHOWN_CHARACTERS = 40
# for what no row can hold
LEAVE_OUT = "mend the row, or leave out all wrong rows: --data.on_bad_row skip"


class WrongRow(Exception):
    """A row that can't be an example.

    Args:
        reason: what was found and what was expected.
        remedy: what to do about it, as it is typed.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


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


def listed(keys: Collection[str]) -> str:
    """The first keys that were found, in quotes."""
    names = [shown(key) for key in list(keys)[:_SHOWN_KEYS]]
    return ", ".join(names) + (", …" if len(keys) > _SHOWN_KEYS else "")


def did_you_mean(found: Collection[str], wanted: Sequence[str]) -> str:
    """A question about the first of `found` that is near to one of `wanted`, or ""."""
    for key in found:
        near = get_close_matches(key.strip().lower()[:_SHOWN_CHARACTERS], wanted, n=1)
        if near:
            return f"found {shown(key)}: did you mean {shown(near[0])}?"
    return ""


def string(value: object, name: str) -> str:
    """The value, which has to be a string of whole characters."""
    if not isinstance(value, str):
        raise WrongRow(f"{name} is {kind_of(value)}, expected a string", _as_string(value, name))
    lone = _LONE_SURROGATE.search(value)
    if lone:
        code = f"U+{ord(lone.group()):04X}"
        reason = f"{name} holds half a character: the lone surrogate {code}"
        raise WrongRow(reason, "write the whole character, or remove the half one")
    return value


def _as_string(value: object, name: str) -> str:
    """How a value of another kind is written so that it is read."""
    if value is None:
        return "write the text, or remove the row: --data.on_bad_row skip"
    if isinstance(value, dict | list):
        return "write it as text; JSON as a string, with its quotes escaped"
    return (
        f'write it in quotes: "{value}"' if isinstance(value, int | float) else "write it as text"
    )


def not_blank(text: str, name: str) -> str:
    """The text, which has to hold more than white space."""
    if not text.strip():
        reason = f"{name} is {'only white space' if text else 'empty'}, expected text"
        raise WrongRow(reason, "write the text, or remove the row: --data.on_bad_row skip")
    return text
