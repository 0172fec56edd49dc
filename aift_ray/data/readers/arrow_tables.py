"""Rows of .parquet and .arrow files, whose schema names the keys of every row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.data.examples import Fault
from aift_ray.data.readers.reader_options import PLAIN, RawRow, Reading
from aift_ray.data.readers.row_schema import ROW_KEYS
from aift_ray.data.readers.tabular import find_columns, refuse_double
from aift_ray.data.readers.text_lines import WrongFile

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 512


def read_parquet(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of a Parquet file, numbered from 1.

    Raises:
        WrongFile: not Parquet, damaged, or columns that are no kind of row.
        OSError: the file can't be opened.
    """
    import pyarrow as pa
    from pyarrow import parquet

    _not_empty(path)
    try:
        # without pre_buffer only pages are held, not a whole row group
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as source:
            columns = _typed_columns(source.schema_arrow, path, reading)
            batches = source.iter_batches(_BATCH_ROWS, columns=list(columns.values()))
            yield from _batched_rows(batches, columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged("a Parquet file", error) from None


def read_arrow(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of an Arrow IPC file or stream, as `datasets` writes them, numbered from 1.

    Raises:
        WrongFile: not Arrow, damaged, or columns that are no kind of row.
        OSError: the file can't be opened.
    """
    import pyarrow as pa

    _not_empty(path)
    try:
        with closing(pa.memory_map(str(path))) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            columns = _typed_columns(opened.schema, path, reading)
            batches = map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened
            cut = (
                part.slice(start, _BATCH_ROWS).select(list(columns.values()))
                for part in batches
                for start in range(0, part.num_rows, _BATCH_ROWS)
            )
            yield from _batched_rows(cut, columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged("an Arrow file", error) from None


def _not_empty(path: Path) -> None:
    with path.open("rb") as stream:
        if not stream.read(1):
            raise WrongFile("the file is empty (0 bytes)", "copy or save it again")


def _damaged(what: str, error: Exception) -> WrongFile:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WrongFile(f"not {what}, or a damaged one: {said[:200]}", "make the file again")


def _batched_rows(batches: Iterator[Any], columns: dict[str, str]) -> Iterator[RawRow | Fault]:
    """Rows of record batches, of which `columns` names the column of each key."""
    first, key_of = 1, {column: key for key, column in columns.items()}
    for batch in batches:
        for number, row in enumerate(_python_rows(batch, first), first):
            yield RawRow(number, {key_of[name]: value for name, value in row.items()})
        first += batch.num_rows


def _python_rows(batch: pa.RecordBatch, first: int) -> list[dict[str, object]]:
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
    turns = row.get("messages")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("tool_calls"):
            turn["tool_calls"] = _without_nulls(turn["tool_calls"])
    return row


def _without_nulls(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value


def _typed_columns(schema: pa.Schema, path: Path, reading: Reading) -> dict[str, str]:
    """{key of a row: the column that holds it}, each of the type that the key needs."""
    if reading.any_row:
        refuse_double(schema.names)
        return {name: name for name in schema.names}
    names, form = find_columns(schema.names, path, reading)
    columns = {key: schema.names[names.index(key)] for key in form.keys if key in names}
    wants_list = form.kind == "messages"
    # answers that are compared may be texts or messages: each row is looked at
    for name in columns.values() if reading.answers == "one" else ():
        found = schema.field(name).type
        if not (_is_list(found) if wants_list else _is_text(found)):
            expected = "a list of messages" if wants_list else "string"
            raise WrongFile(
                f"the column {name} is {found}, expected {expected}",
                f"write the column {name} as {expected}",
            )
    more = {key: schema.names[names.index(key)] for key in ROW_KEYS if key in names}
    return columns | more


def _is_text(found: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(found):
        return _is_text(found.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(test(found) for test in tests)


def _is_list(found: object) -> bool:
    from pyarrow import types

    return any(test(found) for test in (types.is_list, types.is_large_list))
