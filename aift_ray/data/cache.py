"""Token ids on disk: made once from the data files, memory-mapped by every worker.

A cache folder is named by the content that went into it (files, tokenizer, template, settings),
written beside its final name and renamed, so that two runs may make the same one at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aift_ray.config import DataConfig
from aift_ray.data.duplicates import DuplicateCounter
from aift_ray.data.encoded import Encoded
from aift_ray.data.encoding import (
    SHOWN_FAULTS,
    Counts,
    Encode,
    Encoding,
    Encodings,
    encode_here,
)
from aift_ray.data.examples import Example, Fault
from aift_ray.data.place import cache_folder
from aift_ray.data.prompts import PromptEncoder
from aift_ray.data.remote import brought
from aift_ray.data.sources import expand_files
from aift_ray.errors import DataError, Problem

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]

VERSION = 2
_BATCH_ROWS = 2048
# while a cache is made
_DIGESTS = "digests"
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
            lengths.append(np.diff(_numpy(batch.column("ids").offsets)))
            targets.append(_numpy(batch.column("targets")))
        self.lengths: Ids = np.concatenate(lengths)
        self.targets: Ids = np.concatenate(targets)

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags of a row, each of shape (length,)."""
        batch, row = self._locate(index)
        ids: Ids = _numpy(batch.column("ids")[row].values)
        flags: Flags = _numpy(batch.column("supervised")[row].values)
        return ids, flags

    def place(self, index: int) -> str:
        """Where a row came from, as file:line."""
        batch, row = self._locate(index)
        return f"{batch.column('file')[row].as_py()}:{batch.column('line')[row].as_py()}"

    def _locate(self, index: int) -> tuple[Any, int]:
        return self._reader.get_batch(index // _BATCH_ROWS), index % _BATCH_ROWS


@dataclass(frozen=True)
class Prepared:
    """A cache folder: `train` and `eval` rows of at most `sequence_length` tokens, and counts."""

    folder: Path
    train: Counts
    eval: Counts
    warnings: list[str]
    sequence_length: int

    def rows(self, name: str) -> TokenRows:
        """The rows of set `name`, train or eval."""
        return TokenRows(self.folder / f"{name}.arrow")


def prepare(
    config: DataConfig,
    encoder: PromptEncoder,
    sequence_length: int,
    encode: Encode = encode_here,
) -> Prepared:
    """Tokenize the files of `config`, or find them tokenized.

    Args:
        encode: tokenizes examples, in their order; the cache is the same whoever does it.

    Raises:
        DataError: files that can't be read, wrong rows (unless they are to be skipped), rows
            that are too long where that is an error, or no supervised token at all.
    """
    place = cache_folder(config)
    train, evaluation = (
        expand_files(brought(patterns, place))
        for patterns in (config.train_files, config.eval_files)
    )
    folder = place / _key(config, encoder, sequence_length, train, evaluation)
    if not folder.is_dir():
        _build(folder, config, partial(encode, encoder), sequence_length, train, evaluation)
    # the time of its last use
    os.utime(folder)
    return load(folder)


def load(folder: Path) -> Prepared:
    """Open a cache folder that `prepare` made."""
    stored = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    train, held_out = (Counts(**stored[name]) for name in ("train", "eval"))
    return Prepared(folder, train, held_out, stored["warnings"], stored["sequence_length"])


def _key(
    config: DataConfig,
    encoder: PromptEncoder,
    sequence_length: int,
    train: Sequence[Path],
    evaluation: Sequence[Path],
) -> str:
    parts: list[Any] = [VERSION, encoder.digest(), sequence_length]
    parts += [config.on_bad_row, config.on_long_row, config.text_unit]
    for files in (train, evaluation):
        parts.append([[str(path), _file_digest(path)] for path in files])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(
    folder: Path,
    config: DataConfig,
    encode: Callable[[Iterator[Example | Fault]], Encodings],
    sequence_length: int,
    train: Sequence[Path],
    evaluation: Sequence[Path],
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        duplicates = DuplicateCounter(scratch / _DIGESTS)
        faults: list[Fault] = []
        sets = {}
        for name, files in (("train", train), ("eval", evaluation)):
            note = duplicates.add_train if name == "train" else duplicates.add_eval
            encoding = Encoding(config, encode, sequence_length, note)
            _write(scratch / f"{name}.arrow", encoding.rows(files))
            faults += encoding.faults if config.on_bad_row == "error" else []
            faults += [f for f in encoding.faults if f.line is None and f not in faults]
            sets[name] = encoding.counts
        _raise_for(faults)
        if not sets["train"].supervised_tokens:
            raise DataError([_nothing_supervised(sets["train"])])
        stored: dict[str, Any] = {name: asdict(counts) for name, counts in sets.items()}
        stored |= {"warnings": duplicates.warnings(), "sequence_length": sequence_length}
        shutil.rmtree(scratch / _DIGESTS, ignore_errors=True)
        (scratch / "counts.json").write_text(json.dumps(stored, ensure_ascii=False), "utf-8")
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        # another run made the same content first
        if not folder.is_dir():
            raise


def _raise_for(faults: list[Fault]) -> None:
    if faults:
        problems = [
            Problem(f.file if f.line is None else f"{f.file}:{f.line}", f.reason, f.remedy)
            for f in faults[:SHOWN_FAULTS]
        ]
        raise DataError(problems, hidden=len(faults) - len(problems))


def _nothing_supervised(counts: Counts) -> Problem:
    return Problem(
        "training data",
        f"none of its {counts.rows} usable rows has a token to train on "
        f"({counts.dropped_rows} rows were dropped because the answer does not fit)",
        "raise --data.sequence_length, or check the rows with --dry-run",
    )


def _write(path: Path, rows: Iterator[tuple[Encoded, Example]]) -> None:
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
    ids, flags, targets, files, lines = columns
    arrays = [_lists(ids), _lists(flags), _array(targets), _strings(files), _array(lines)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _array(numbers: list[int] | npt.NDArray[Any]) -> Any:
    """An Arrow column of numbers; `pa.array` would import pandas, which takes a second."""
    values = np.ascontiguousarray(numbers, getattr(numbers, "dtype", np.int32))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _numpy(column: Any) -> npt.NDArray[Any]:
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
