"""What `--help` and `--help-all` say: settings in groups, common ones first, in 80 columns."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aift_ray.config.section import Settings

# columns at most
_WIDTH = 80
# what `--help` shows beside settings with a short flag and those outside of sections
_COMMON = frozenset(
    {
        "training.learning_rate",
        "training.batch_size",
        "training.gradient_accumulation_steps",
        "training.num_epochs",
        "training.gradient_checkpointing",
        "training.eval_steps",
        "training.save_steps",
        "lora.r",
        "data.sequence_length",
        "data.packing",
        "data.validation_fraction",
    }
)
_OWN = (
    ("--config FILE", "YAML file of settings; may be given again, later files take precedence"),
    ("--dry-run", "show what would be done, without doing it"),
    ("--help", "show the common settings"),
    ("--help-all", "show every setting with its default and meaning"),
)
_WORDS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


@dataclass(frozen=True)
class Flag:
    """A setting as it is typed.

    Attributes:
        name: dotted, as in a YAML file.
        short: flag of one word; "": there is none.
        group: section of the settings; "": those of the verb itself.
        choices: the words that it takes; none where it takes any.
    """

    name: str
    short: str
    group: str
    field: FieldInfo
    choices: tuple[str, ...]

    @property
    def typed(self) -> str:
        """The flag and what it takes."""
        typed = f"--{self.short or self.name} "
        words = "|".join(self.choices) or _word(self.field.annotation)
        return typed + (words if len(typed + words) <= _width() - 2 else "WORD")

    @property
    def meaning(self) -> str:
        """In a sentence, with the default and the name in a YAML file."""
        text = self.field.description or ""
        if self.typed.endswith(" WORD"):
            text = f"{', '.join(self.choices)}: {text}"
        default = self.field.get_default(call_default_factory=True)
        if default not in (None, [], {}) and "default:" not in text:
            shown = str(default).lower() if isinstance(default, bool) else default
            text += f" (default: {shown})"
        return text + (f"; in full --{self.name}" if self.short not in ("", self.name) else "")


def flags(settings: type[Settings]) -> list[Flag]:
    """Every setting, in the order of declaration."""
    shorts = settings.short_flags.items()
    # of several the first is shown
    first = {name: short if isinstance(short, str) else short[0] for name, short in shorts}
    return list(_flags(settings, first, ""))


def _flags(section: type[BaseModel], shorts: dict[str, str], prefix: str) -> Iterator[Flag]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _flags(kind, shorts, f"{prefix}{name}.")
        else:
            full = prefix + name
            yield Flag(full, shorts.get(full, ""), prefix.rstrip("."), field, _choices(kind))


def shown(settings: type[Settings], verb: str, description: str, epilog: str, whole: bool) -> str:
    """The text of --help, or of --help-all where `whole`."""
    every = flags(settings)
    common = [f for f in every if not f.group or f.short or f.name in _COMMON]
    rest = [flag for flag in every if flag not in common]
    lines = [*_wrapped(f"usage: aift-ray {verb} [--config FILE] [--SETTING VALUE ...]", ""), ""]
    lines += [*_prose(description), ""]
    lines += ["settings:" if not rest else "common settings:"]
    lines += [line for flag in common for line in _entry(flag.typed, flag.meaning)]
    for group in dict.fromkeys(flag.group for flag in rest):
        about = settings.model_fields[group].description
        members = [flag for flag in rest if flag.group == group]
        more = "" if whole else " (--help-all says more)"
        lines += ["", *_wrapped(f"{group}: {about}{more}", "")]
        if whole:
            lines += [line for flag in members for line in _entry(flag.typed, flag.meaning)]
        else:
            names = "  ".join(f"--{flag.name}" for flag in members)
            lines += _wrapped(names, "  ")
    lines += ["", "the command itself:"]
    lines += [line for own in _OWN for line in _entry(*own)]
    return "\n".join([*lines, "", *_prose(epilog)]).rstrip()


def _prose(text: str) -> list[str]:
    """Paragraphs within the width; indented lines stay lines of their own."""
    lines: list[str] = []
    for indented, group in groupby(text.splitlines(), lambda line: line.startswith(" ")):
        for paragraph in group if indented else "\n".join(group).strip().split("\n\n"):
            lines += _wrapped(paragraph.strip(), "  " if indented else "")
            lines += [] if indented else [""]
        lines += [""] if indented else []
    return lines[:-1]


def _width() -> int:
    return min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)


def _entry(typed: str, meaning: str) -> list[str]:
    return [*_wrapped(typed, "  "), *_wrapped(meaning, " " * 8)]


def _wrapped(text: str, indent: str) -> list[str]:
    # a Japanese character takes two columns
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return textwrap.wrap(
        text,
        _width() - wide,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _choices(kind: object) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(str(value) for value in get_args(kind))
    if get_origin(kind) in (None, Annotated, list, dict):
        return ()
    inside = [_choices(part) for part in get_args(kind) if part is not NoneType]
    return inside[0] if len(inside) == 1 else ()


def _word(kind: object) -> str:
    """What a setting of a type takes."""
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Annotated:
        return _word(get_args(kind)[0])
    if get_origin(kind) is list:
        return _word(get_args(kind)[0])
    if get_origin(kind) is dict:
        return "NAME=VALUE"
    words = [_word(part) for part in get_args(kind) if part is not NoneType]
    return "|".join(dict.fromkeys(words)) or "VALUE"
