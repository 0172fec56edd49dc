"""Options of rewards as typed: `name=value,name=value`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aift_ray.errors import Problem


@dataclass(frozen=True)
class Option:
    """One option of a reward.

    Attributes:
        convert: from what was typed; raises ValueError with what is expected.
        help: one line.
    """

    convert: Callable[[str], Any]
    help: str


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """`did you mean ...?`, or what there is."""
    found = difflib.get_close_matches(name, list(known), 1, 0.55)
    return f"did you mean '{found[0]}'?" if found else f"known are: {', '.join(known)}"


def read(
    where: str, text: str, known: Mapping[str, Option]
) -> tuple[dict[str, Any], list[Problem]]:
    """The options in a text, and what is wrong with them.

    A value may hold commas: it ends at a comma that is followed by the name of an option and `=`.
    """
    if not text:
        return {}, []
    names = "|".join(map(re.escape, known)) or "(?!)"
    values: dict[str, Any] = {}
    problems = []
    for entry in re.split(rf",(?=(?:{names})=)", text):
        name, separator, value = entry.partition("=")
        if name not in known or not separator:
            what = f"there is no option {name!r}" if separator else f"{entry!r} is no option=value"
            problems.append(Problem(where, what, nearest(name, known)))
            continue
        if name in values:
            problems.append(Problem(where, f"the option {name} is given twice", "keep one"))
        problems += [Problem(where, *each) for each in _misspelled(value, known)]
        try:
            values[name] = known[name].convert(value)
        except ValueError as error:
            problems.append(Problem(where, f"{name}={value} is not allowed: {error}"))
    return values, problems


def _misspelled(value: str, known: Mapping[str, Option]) -> list[tuple[str, str]]:
    """What looks like a further option in a value, and is none."""
    return [
        (f"there is no option {name!r}", f"did you mean '{near[0]}'?")
        for name in re.findall(r",(\w+)=", value)
        if (near := difflib.get_close_matches(name, list(known), 1, 0.75))
    ]


def text(value: str) -> str:
    """Any text that is not empty."""
    if not value:
        raise ValueError("give a text")
    return value


def whole(lowest: int) -> Callable[[str], int]:
    """A whole number of at least `lowest`."""

    def convert(value: str) -> int:
        if not re.fullmatch(r"-?\d+", value) or int(value) < lowest:
            raise ValueError(f"give a whole number of at least {lowest}")
        return int(value)

    return convert


def one_of(*allowed: str) -> Callable[[str], str]:
    """One of some words."""

    def convert(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"give one of {', '.join(allowed)}")
        return value

    return convert


def expression(value: str) -> str:
    """A regular expression."""
    try:
        re.compile(text(value))
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return value
