"""Rows of the data files of tasks, as objects with the fields that the file has."""

from __future__ import annotations

from collections.abc import Sequence
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
_TABLES = (".csv", ".tsv")


def is_data_file(path: Path) -> bool:
    """Whether its name ends as a data file's does."""
    return path.name.lower().endswith(sources.SUFFIXES)


def find_file(path: Path) -> Path | None:
    """A data file, or one of the same name with another suffix; None where there is none."""
    if path.is_file():
        return path
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    found = [path.with_name(stem + suffix) for suffix in sources.SUFFIXES]
    return next((each for each in found if each.is_file()), None)


def read_rows(path: Path, problems: list[Problem], columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a file; what is wrong with it is added to `problems`.

    SQuAD's files, one object with all paragraphs, give a row for each question.

    Args:
        columns: names of the columns of a table whose first line is a row.
    """
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
    tabular = any(path.name.lower().endswith(s) or f"{s}." in path.name.lower() for s in _TABLES)
    if columns and tabular and rows and columns[0] not in rows[0][1]:
        first = (1, dict(zip(columns, rows[0][1], strict=False)))
        values = (list(row.values()) for _, row in rows)
        named = [dict(zip(columns, each, strict=False)) for each in values]
        rows = [first, *zip((line for line, _ in rows), named, strict=True)]
    if len(rows) == 1 and isinstance(rows[0][1].get("data"), list):
        return _questions(rows[0][1]["data"]) or rows
    return rows


def _questions(articles: list[Any]) -> list[Row]:
    """The questions of SQuAD's form, numbered from 1; empty where it is another form."""
    found: list[dict[str, Any]] = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                shared = {"title": article.get("title", ""), "context": paragraph["context"]}
                found += [shared | question for question in paragraph["qas"]]
    except (TypeError, KeyError, AttributeError):
        return []
    return list(enumerate(found, 1))


def _problem(path: Path, fault: Fault) -> Problem:
    where = f"{path}:{fault.line}" if fault.line else str(path)
    remedy = fault.remedy
    if "--data." in remedy:
        # flags of training, which tasks don't have
        of_row = "--data.on_bad_row" in remedy
        remedy = "mend the row" if of_row else "save it as UTF-8, a workbook with one sheet"
    return Problem(where, fault.reason, remedy)


def _no_object(path: Path, row: RawRow) -> Problem:
    what = f"{row.where}the row is no object, expected {{field: value}}"
    return Problem(f"{path}:{row.line}", what)
