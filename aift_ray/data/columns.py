"""Rows of .csv and .parquet files, whose header or schema names the keys of every row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aift_ray.data.examples import Example, Fault
from aift_ray.data.lines import WrongFile, read_lines
from aift_ray.data.rows import ROW_KEYS, Form, WrongRow, find_form, make_example, shown

_CELL_CHARACTERS = 1 << 26
_BATCH_ROWS = 512
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "，": "full-width commas", "、": "Japanese commas"}


def read_csv(path: Path) -> Iterator[Example | Fault]:
    """Rows of a CSV file with a header; a row is named by the line in which it starts.

    Raises:
        WrongFile: not UTF-8, a header that names no kind of row, or a quote that is never closed.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    rows, file = _csv_rows(path), str(path)
    first = next(rows, None)
    if first is None:
        return
    header_line, header = first
    if isinstance(header, csv.Error):
        raise WrongFile(f"line {header_line}: not a CSV header: {header}")
    names = [name.strip() for name in header]
    form = _csv_form(names, header_line)
    places = {names.index(key): key for key in (*form.keys, *ROW_KEYS) if key in names}
    for line, cells in rows:
        if isinstance(cells, csv.Error):
            yield Fault(file, line, f"not CSV: {cells}", 'write a quote within quotes as ""')
        elif len(cells) != len(names):
            number = f"{len(cells)} cell{'s' if len(cells) != 1 else ''}"
            remedy = "put cells that hold commas or line ends in double quotes"
            yield Fault(file, line, f"{number}, expected {len(names)} as in the header", remedy)
        elif any("\0" in cell for cell in cells):
            yield Fault(file, line, "the row holds NUL bytes", "remove them")
        else:
            yield make_example({key: cells[place] for place, key in places.items()}, file, line)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Rows that are not blank, or what is wrong with them, with the line in which they start."""
    # the default limit is below the length of a long document
    csv.field_size_limit(max(csv.field_size_limit(), _CELL_CHARACTERS))
    reader = csv.reader((text for _, text in read_lines(path)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field limit" in str(error):
                reason = f"line {line}: a quoted cell of the row that starts here is never closed"
                raise WrongFile(reason, 'close it, and write a quote within quotes as ""') from None
            yield line, error
            continue
        blank = not cells or (len(cells) == 1 and cells[0] and not cells[0].strip())
        if not blank:
            yield line, cells


def _csv_form(names: Sequence[str], line: int) -> Form:
    try:
        form = _form(names)
    except WrongFile as wrong:
        remedy = _other_format(names) or wrong.remedy
        raise WrongFile(f"line {line}: {wrong.reason}", remedy) from None
    if form.kind == "messages":
        reason = f"line {line}: {form.required[0]} has no CSV form"
        raise WrongFile(reason, "use .jsonl, .json or .parquet")
    return form


def _other_format(names: Sequence[str]) -> str:
    if names[0].startswith(("{", "[")):
        return "the file looks like JSON: name it .jsonl or .json"
    for sign, called in _SEPARATORS.items():
        if len(names) == 1 and sign in names[0]:
            return f"the columns seem to be separated by {called}: use commas"
    return ""


def _form(names: Sequence[str]) -> Form:
    double = sorted({name for name in names if name and names.count(name) > 1})
    if double:
        listed = ", ".join(shown(name) for name in double)
        raise WrongFile(f"duplicate column {listed}", "keep one of each")
    try:
        return find_form(names, "column")
    except WrongRow as wrong:
        raise WrongFile(wrong.reason, wrong.remedy) from None


def read_parquet(path: Path) -> Iterator[Example | Fault]:
    """Rows of a Parquet file, numbered from 1.

    Raises:
        WrongFile: not Parquet, damaged, or columns that are no kind of row.
        OSError: the file can't be opened.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with path.open("rb") as stream:
        if not stream.read(1):
            raise WrongFile("the file is empty (0 bytes)")
    try:
        # without pre_buffer only pages are held, not a whole row group
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as source:
            columns = _parquet_columns(source.schema_arrow)
            first = 1
            for batch in source.iter_batches(_BATCH_ROWS, columns=columns):
                for number, row in enumerate(_python_rows(batch, first), first):
                    yield make_example(row, str(path), number)
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = f"not a Parquet file, or a damaged one: {said[:200]}"
        raise WrongFile(reason, "make the file again") from None


def _python_rows(batch: Any, first: int) -> list[dict[str, object]]:
    try:
        rows: list[dict[str, object]] = batch.to_pylist()
    except UnicodeDecodeError:
        last = first + batch.num_rows - 1
        reason = f"one of the rows {first} to {last} holds text that is not UTF-8"
        raise WrongFile(reason, "make the file again from text in UTF-8") from None
    return [_own_keys(row) for row in rows]


def _own_keys(row: dict[str, Any]) -> dict[str, object]:
    """The row without nulls in its tools and calls: objects of a column have the keys of all."""
    for key in ("tools", "chat_template_kwargs"):
        if key in row:
            row[key] = _without_nulls(row[key])
    for turn in row.get("messages") or ():
        if isinstance(turn, dict) and turn.get("tool_calls"):
            turn["tool_calls"] = _without_nulls(turn["tool_calls"])
    return row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value


def _parquet_columns(schema: Any) -> list[str]:
    form = _form(schema.names)
    columns = [key for key in form.keys if key in schema.names]
    wants_list = form.kind == "messages"
    for name in columns:
        found = schema.field(name).type
        if not (_is_list(found) if wants_list else _is_text(found)):
            expected = "a list of messages" if wants_list else "string"
            raise WrongFile(
                f"the column {name} is {found}, expected {expected}",
                f"write the column {name} as {expected}",
            )
    return [*columns, *(key for key in ROW_KEYS if key in schema.names)]


def _is_text(found: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(found):
        return _is_text(found.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(test(found) for test in tests)


def _is_list(found: Any) -> bool:
    from pyarrow import types

    return any(test(found) for test in (types.is_list, types.is_large_list))
