"""Token rows in an Arrow file: written once in their order, memory-mapped by every worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aift_ray.data import memory
from aift_ray.data.encoded import Encoded
from aift_ray.data.examples import Example

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
    ]
)


class TokenRows:
    """The rows of one set, read from a memory-mapped Arrow file.

    Attributes:
        lengths: tokens a row, shape (rows,).
        targets: supervised tokens a row that have a token before them, shape (rows,).
    """

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        lengths, targets = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            lengths.append(batch.column("ids").value_lengths().to_numpy())
            targets.append(batch.column("targets").to_numpy())
        self.lengths: Ids = np.concatenate(lengths)
        self.targets: Ids = np.concatenate(targets)

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags of a row, each of shape (length,)."""
        batch, row = self._locate(index)
        ids: Ids = batch.column("ids")[row].values.to_numpy()
        flags: Flags = batch.column("supervised")[row].values.to_numpy()
        return ids, flags

    def place(self, index: int) -> str:
        """Where a row came from, as file:line; of rows given in Python argument[index]."""
        batch, row = self._locate(index)
        return memory.place(batch.column("file")[row].as_py(), batch.column("line")[row].as_py())

    def _locate(self, index: int) -> tuple[Any, int]:
        return self._reader.get_batch(index // _BATCH_ROWS), index % _BATCH_ROWS


def write_rows(path: Path, rows: Iterator[tuple[Encoded, Example]]) -> None:
    """Write rows as they come; no more than a batch is held."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        columns: list[list[Any]] = [[] for _ in _SCHEMA]
        for encoded, example in rows:
            ids, flags = np.array(encoded.ids, np.int32), np.array(encoded.supervised, np.uint8)
            targets = int(np.count_nonzero(flags[1:]))
            values = (ids, flags, targets, example.file, example.line)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            if len(columns[0]) == _BATCH_ROWS:
                writer.write_batch(_batch(columns))
                columns = [[] for _ in _SCHEMA]
        if columns[0]:
            writer.write_batch(_batch(columns))


def _batch(columns: list[list[Any]]) -> Any:
    arrays = [_lists(columns[0]), _lists(columns[1])]
    arrays += [pa.array(c, type=f.type) for c, f in list(zip(columns, _SCHEMA, strict=True))[2:]]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _lists(rows: list[Any]) -> Any:
    """An Arrow column of lists; as `pa.array`, which would take a Python number at a time."""
    ends = np.cumsum([len(row) for row in rows], dtype=np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), ends])
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(np.concatenate(rows)))
