"""Wrong settings in plain words: the field, what was given, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from aift_ray.errors import Problem

_OWN_FLAGS = ("config", "dry-run", "help")


def flags_of(section: type[BaseModel]) -> dict[str, Any]:
    """Every flag and its annotation, the short ones too."""
    found = dict(_annotations(section))
    return found | {
        short: found[name] for name, short in getattr(section, "short_flags", {}).items()
    }


def _annotations(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _annotations(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def wrong(section: type[BaseModel], detail: dict[str, Any]) -> Problem:
    """What pydantic says of one field, in plain words."""
    name = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    if detail["type"] == "extra_forbidden":
        return unknown(section, name, "setting")
    given = detail["input"]
    shown = "a section" if isinstance(given, dict) else repr(given)
    expected = detail["msg"].removeprefix("Value error, ")
    return Problem(name, f"{shown} is not allowed: {expected[:1].lower()}{expected[1:]}")


def unknown(section: type[BaseModel], name: str, what: str) -> Problem:
    """A setting or flag that does not exist, with the nearest that does."""
    known = list(flags_of(section)) + list(_OWN_FLAGS)
    near = difflib.get_close_matches(name, known, 1, 0.5) or [
        n for n in known if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
    ]
    shown = f"--{name}" if what == "flag" else name
    hint = f"did you mean '{near[0]}'?" if near else "see --help for all of them"
    return Problem(shown, f"there is no such {what}", hint)
