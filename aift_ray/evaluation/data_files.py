"""Rows of the data files of tasks, as objects with the fields that the file has."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aift_ray.data.lines import WrongFile, read_lines
from aift_ray.errors import Problem

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

# line (Parquet: row) from 1, and the fields
Row = tuple[int, dict[str, Any]]


def is_data_file(path: Path) -> bool:
    """Whether its name ends as a data file's does, `.gz` behind it or not."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in SUFFIXES


def read_rows(path: Path, problems: list[Problem]) -> list[Row]:
    """The rows of a file; what is wrong with it is added to `problems`."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        what = f"unknown suffix {path.suffix!r}"
        problems.append(Problem(str(path), what, f"allowed are {', '.join(SUFFIXES)}"))
        return []
    try:
        if suffix == ".parquet":
            rows = list(_parquet(path))
        elif suffix == ".json":
            rows = _json(path)
        elif suffix == ".jsonl":
            rows = list(_jsonl(path))
        else:
            rows = list(_csv(path, "\t" if suffix == ".tsv" else ","))
    except WrongFile as wrong:
        problems.append(Problem(str(path), wrong.reason, wrong.remedy))
        return []
    except (OSError, EOFError) as error:
        problems.append(Problem(str(path), f"can't be read: {error}"))
        return []
    if not rows:
        problems.append(Problem(str(path), "the file holds no row"))
    return rows


def _jsonl(path: Path) -> Iterator[Row]:
    for number, text in read_lines(path):
        if text.strip():
            try:
                yield number, _object(json.loads(text), number)
            except ValueError as error:
                raise WrongFile(f"line {number}: not JSON: {error}") from None


def _json(path: Path) -> list[Row]:
    text = "".join(line for _, line in read_lines(path))
    try:
        value = json.loads(text)
    except ValueError:
        return list(_jsonl(path))
    if not isinstance(value, list):
        raise WrongFile("holds no list of rows", "write a list, or one row a line in a .jsonl file")
    return [(number, _object(row, number)) for number, row in enumerate(value, 1)]


def _object(value: object, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongFile(f"row {number} is no object, expected {{field: value}}")
    return value


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 26)
    reader = csv.DictReader(
        (text for _, text in read_lines(path)), delimiter=delimiter, strict=True
    )
    try:
        for row in reader:
            if None in row or None in row.values():
                raise WrongFile(f"line {reader.line_num}: not as many cells as the header has")
            yield reader.line_num, {name.strip(): cell for name, cell in row.items()}
    except csv.Error as error:
        raise WrongFile(f"line {reader.line_num}: not CSV: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as source:
            number = 0
            for batch in source.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise WrongFile(f"not a Parquet file, or a damaged one: {error}") from None
