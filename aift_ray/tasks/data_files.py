"""Rows of the data files of tasks, as objects with the fields that the file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aift_ray.data.examples import Fault
from aift_ray.data.readers import sources
from aift_ray.data.readers.reader_options import RawRow, Reading
from aift_ray.errors import Problem

# line (Parquet: row) from 1, and the fields
Row = tuple[int, dict[str, Any]]

_AS_THEY_ARE = Reading(encoding="auto", any_row=True)
_SHOWN = 20


def is_data_file(path: Path) -> bool:
    """Whether its name ends as a data file's does."""
    return path.name.lower().endswith(sources.SUFFIXES)


def read_rows(path: Path, problems: list[Problem]) -> list[Row]:
    """The rows of a file; what is wrong with it is added to `problems`."""
    rows: list[Row] = []
    wrong: list[Problem] = []
    for item in sources.read_raw(path, _AS_THEY_ARE):
        if isinstance(item, Fault):
            wrong.append(_problem(path, item))
        elif isinstance(item.value, dict):
            rows.append((item.line, item.value))
        else:
            wrong.append(_no_object(path, item))
    problems += wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        problems.append(Problem(str(path), f"{len(wrong) - _SHOWN} more rows are wrong"))
    return rows


def _problem(path: Path, fault: Fault) -> Problem:
    where = f"{path}:{fault.line}" if fault.line else str(path)
    # flags of training, which tasks don't have
    named = "--data." in fault.remedy
    remedy = "save it as UTF-8, a workbook with one sheet" if named else fault.remedy
    return Problem(where, fault.reason, remedy)


def _no_object(path: Path, row: RawRow) -> Problem:
    what = f"{row.where}the row is no object, expected {{field: value}}"
    return Problem(f"{path}:{row.line}", what)
