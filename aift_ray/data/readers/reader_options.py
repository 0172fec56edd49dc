"""What is said beside the files about how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aift_ray.config import DataConfig
from aift_ray.config.preference_config import Answers

TextUnit = Literal["line", "paragraph", "file"]


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it, before anything is asked of its keys.

    Attributes:
        line: physical line from 1 (Parquet: row from 1; a row over several lines: its first line).
        value: an object of the file's own fields, or what stands in its place.
        where: put before what is found wrong with it.
    """

    line: int
    value: object
    where: str = ""


def _nobody(remark: str) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class Reading:
    """How files are read, and who is told what was found out about them.

    Attributes:
        text_unit: a document of a .txt file.
        encoding: of text files: utf-8, cp932, euc-jp, or auto to find out.
        columns: {key of a row: the column or key of the file that holds it}.
        sheet: of an .xlsx file; None: the only one that holds rows.
        hidden_rows: of an .xlsx file: train, or skip.
        any_row: rows of no known kind are taken too, as a text of their fields, NUL between them.
        answers: what a row holds: one answer, a better and a worse one, one with a label, or a
            prompt alone.
        remark: called with a sentence for each thing that was found out, not given.
        used: keys of `columns` that some file had a column for, so far.
        seen: names of columns where one of `columns` was not among them, so far.
    """

    text_unit: TextUnit = "line"
    encoding: str = "utf-8"
    columns: Mapping[str, str] = field(default_factory=dict)
    sheet: str | None = None
    hidden_rows: Literal["train", "skip"] = "train"
    any_row: bool = False
    answers: Answers = "one"
    remark: Callable[[str], None] = _nobody
    used: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)


PLAIN = Reading()


def reading_of(
    config: DataConfig, answers: Answers, remark: Callable[[str], None] = _nobody
) -> Reading:
    """How the files of `config` are read; `remark` is told what is found out about them."""
    how = (config.text_unit, config.encoding, config.columns, config.sheet)
    return Reading(*how, config.hidden_rows, answers=answers, remark=remark)
