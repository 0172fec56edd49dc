"""Reads data files in tests, and asks for what the test expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.reader_options import Reading, TextUnit
from aift_ray.data.readers.sources import read_examples

Write = Callable[..., Path]
ROW = '{"instruction": "問", "output": "答"}'


def writer(folder: Path) -> Write:
    """Makes a file of a name and content in `folder`; each module has it as its fixture `write`."""

    def write(name: str, content: str | bytes) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(*files: Path, unit: TextUnit = "line", **how: Any) -> tuple[list[Example], list[Fault]]:
    items = list(read_examples(files, Reading(unit, **how)))
    return (
        [item for item in items if isinstance(item, Example)],
        [item for item in items if isinstance(item, Fault)],
    )


def lines_of(path: Path, unit: TextUnit = "line") -> list[int | None]:
    return [item.line for item in read_examples([path], Reading(unit))]


def outputs(path: Path, unit: TextUnit = "line") -> list[str]:
    rows, faults = read(path, unit=unit)
    assert not faults
    return [row.output for row in rows]


def file_fault(path: Path) -> Fault:
    _, faults = read(path)
    assert len(faults) == 1
    assert faults[0].line is None
    assert faults[0].file == str(path)
    return faults[0]
