"""A DeepSpeed configuration file as JSON: what it says, and what of it is no JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

AUTO = "auto"
# (what is wrong, remedy)
Wrong = tuple[str, str]
_MOST_DIGITS = 300
_COMMENTS = ("//", "#", "/*")


class _Object(dict[str, Any]):
    """A JSON object, with the keys that it has more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        numbers = Counter(key for key, _ in pairs)
        self.repeated = [key for key, number in numbers.items() if number > 1]


def read(path: str) -> tuple[dict[str, Any], list[Wrong]]:
    """The content of a file, and what of it is wrong as JSON; numbers that are none are "auto".

    Raises:
        OSError, ValueError: it can't be read, or is no JSON object.
    """
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise ValueError("it is empty")
    try:
        content = json.loads(text, object_pairs_hook=_Object, parse_int=_whole)
        found = list(_wrong(content))
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1][error.colno - 1 :].lstrip()
        reason = "JSON has no comments" if line.startswith(_COMMENTS) else error.msg
        raise ValueError(f"line {error.lineno}, column {error.colno}: {reason}") from None
    except RecursionError:
        raise ValueError("its objects are nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content, found


def shown(value: object) -> str:
    """A value as it is written in the file."""
    return json.dumps(value, ensure_ascii=False)


def _whole(digits: str) -> int:
    """The number; ValueError where it has more digits than any size."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _wrong(value: object, name: str = "") -> Iterator[Wrong]:
    """Keys that are given more than once, and numbers that JSON does not have."""
    if isinstance(value, _Object):
        for key in value.repeated:
            yield f"{_within(name, key)} is there more than once", "keep one of them"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, float) and not math.isfinite(part):
            what = f"{_within(name, key)} is {shown(part)}, which is no number of JSON"
            yield what, f'write a number, or "{AUTO}"'
            value[key] = AUTO  # type: ignore[index]
        else:
            yield from _wrong(part, _within(name, key))


def _within(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
