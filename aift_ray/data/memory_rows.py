"""Rows that a program holds in memory: read as files are, never written to the disk in clear."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aift_ray.data.examples import Example, Fault
from aift_ray.data.token_types import Encoded, EncodedRow

# names of rows in memory among those of files: python:train_texts.jsonl
_PREFIX, _SUFFIX = "python:", ".jsonl"


@dataclass(frozen=True)
class Held:
    """The rows of one argument.

    Attributes:
        data: JSON Lines.
        encoded: the rows as token ids, where they came as such; else empty.
    """

    data: bytes
    encoded: Sequence[Encoded] = field(default=())


_HELD: ContextVar[Mapping[str, Held]] = ContextVar("rows in memory", default={})  # noqa: B039


def name_of(argument: str) -> str:
    """The name, among those of data files, of the rows of an argument."""
    return f"{_PREFIX}{argument}{_SUFFIX}"


def as_lines(rows: Sequence[str | dict[str, Any]]) -> Held:
    """Texts and rows as they would be in a file."""
    items = ({"text": row} if isinstance(row, str) else row for row in rows)
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    return Held(text.encode("utf-8", "surrogatepass"))


def as_tokens(rows: Sequence[Encoded]) -> Held:
    """Rows that are token ids already; their lines hold digests, by which repeated ones are found.

    One that is trained as a whole is cut as a text where it is too long, another as an answer.
    """
    lines = []
    for row in rows:
        digest = sha256(repr((row.ids, row.supervised)).encode()).hexdigest()
        whole = all(row.supervised)
        lines.append({"text": digest} if whole else {"prompt": digest, "completion": digest})
    return Held("".join(json.dumps(line) + "\n" for line in lines).encode(), rows)


@contextmanager
def holding(rows: Mapping[str, Held]) -> Iterator[None]:
    """While this lasts, names of rows in memory are read in this thread as files are."""
    token = _HELD.set({**_HELD.get(), **rows})
    try:
        yield
    finally:
        _HELD.reset(token)


def is_memory(path: Path | str) -> bool:
    """Whether a name is one of rows in memory."""
    return str(path).startswith(_PREFIX)


def content(path: Path) -> bytes | None:
    """The bytes under a name; None where no rows are held under it."""
    held = _HELD.get().get(str(path))
    return held.data if held else None


def tokens(files: Sequence[Path]) -> Any:
    """What takes the place of tokenizing for these files; None where they are not token ids."""
    found = [held for held in (_HELD.get().get(str(path)) for path in files) if held]
    if len(found) != 1 or not found[0].encoded:
        return None

    def encode(items: Iterator[Example | Fault]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, Fault):
                yield item, None
            else:
                yield item, EncodedRow([found[0].encoded[item.line - 1]])

    return encode


def place(file: str, line: int | None) -> str:
    """Where a row is from: file:line, or of rows in memory argument[index]."""
    if not is_memory(file):
        return file if line is None else f"{file}:{line}"
    argument = file.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return argument if line is None else f"{argument}[{line - 1}]"
