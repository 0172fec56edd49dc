"""Token rows in an Arrow file: written once in their order, memory-mapped by every worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aift_ray.data import memory_rows
from aift_ray.data.examples import Example
from aift_ray.data.token_types import Encoded

if TYPE_CHECKING:
    import pyarrow as pa

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]

_BATCH_ROWS = 2048
_SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.uint8())),
        ("targets", pa.int32()),
        ("file", pa.string()),
        ("line", pa.int32()),
        # NaN where the row says nothing
        ("score", pa.float32()),
    ]
)
# the whole row in JSON, where completions of it are generated
_SOURCE = pa.field("row", pa.string())


class TokenRows:
    """The rows of one set, read from a memory-mapped Arrow file.

    Attributes:
        lengths: tokens a row, shape (rows,).
        num_label_tokens: supervised tokens a row that have a token before them, shape (rows,).
        scores: label or margin of a row, NaN where it has none, shape (rows,).
    """

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        lengths, targets = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        scores = [np.zeros(0, np.float32)]
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            lengths.append(np.diff(_numpy(batch.column("ids").offsets)))
            targets.append(_numpy(batch.column("targets")))
            scores.append(_numpy(batch.column("score")))
        self.lengths: Ids = np.concatenate(lengths)
        self.num_label_tokens: Ids = np.concatenate(targets)
        self.scores: npt.NDArray[np.float32] = np.concatenate(scores)

    def __len__(self) -> int:
        return len(self.lengths)

    def ids_from(self, least: int) -> list[int]:
        """The token ids of `least` and above that any row has, in order."""
        found: set[int] = set()
        for number in range(self._reader.num_record_batches):
            ids = _numpy(self._reader.get_batch(number).column("ids").values)
            found |= set(ids[ids >= least].tolist())
        return sorted(found)

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags of a row, each of shape (length,)."""
        batch, row = self._locate(index)
        ids: Ids = _numpy(batch.column("ids")[row].values)
        flags: Flags = _numpy(batch.column("supervised")[row].values)
        return ids, flags

    def place(self, index: int) -> str:
        """Where a row came from, as file:line; of rows given in Python argument[index]."""
        batch, row = self._locate(index)
        return memory_rows.place(
            batch.column("file")[row].as_py(), batch.column("line")[row].as_py()
        )

    def source(self, index: int) -> dict[str, Any]:
        """The row of the file, where completions of its prompt are generated."""
        batch, row = self._locate(index)
        found: dict[str, Any] = json.loads(batch.column("row")[row].as_py())
        return found

    def _locate(self, index: int) -> tuple[Any, int]:
        return self._reader.get_batch(index // _BATCH_ROWS), index % _BATCH_ROWS


def write_rows(path: Path, rows: Iterator[tuple[Encoded, Example]], sources: bool = False) -> None:
    """Write rows as they come; no more than a batch is held.

    Args:
        sources: the rows of the files are kept beside their tokens.
    """
    schema = _SCHEMA.append(_SOURCE) if sources else _SCHEMA
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        columns: list[list[Any]] = [[] for _ in schema]
        for encoded, example in rows:
            ids, flags = np.array(encoded.ids, np.int32), np.array(encoded.supervised, np.uint8)
            targets = int(np.count_nonzero(flags[1:]))
            score = np.nan if example.score is None else example.score
            values = [ids, flags, targets, example.file, example.line, score]
            values += [example.row] if sources else []
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            if len(columns[0]) == _BATCH_ROWS:
                writer.write_batch(_batch(columns, schema))
                columns = [[] for _ in schema]
        if columns[0]:
            writer.write_batch(_batch(columns, schema))


def _batch(columns: list[list[Any]], schema: object) -> Any:
    ids, flags, targets, files, lines, scores, *sources = columns
    arrays = [_lists(ids), _lists(flags), _array(targets), _strings(files), _array(lines)]
    arrays += [_array(np.array(scores, np.float32)), *map(_strings, sources)]
    return pa.record_batch(arrays, schema=schema)


def _array(numbers: list[int] | npt.NDArray[Any]) -> Any:
    """An Arrow column of numbers; `pa.array` would import pandas, which takes a second."""
    values = np.ascontiguousarray(numbers, getattr(numbers, "dtype", np.int32))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _numpy(column: pa.Array) -> npt.NDArray[Any]:
    """The numbers of an Arrow column in place; its `to_numpy` would import pandas, too."""
    kind = column.type.to_pandas_dtype()
    values = np.frombuffer(column.buffers()[1], kind, offset=0)
    return values[column.offset : column.offset + len(column)]


def _strings(texts: list[str]) -> Any:
    encoded = [text.encode() for text in texts]
    ends = _ends([len(text) for text in encoded])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _lists(rows: list[Any]) -> Any:
    """An Arrow column of lists; as `pa.array`, which would take a Python number at a time."""
    ends = _ends([len(row) for row in rows])
    return pa.ListArray.from_arrays(_array(ends), _array(np.concatenate(rows)))


def _ends(lengths: list[int]) -> npt.NDArray[np.int32]:
    """Where pieces of these lengths begin, end to end, and where the last one ends."""
    ends = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:], dtype=np.int32)
    return ends
