"""Whether two places hold the same weights: a digest of what their safetensors files hold.

The digest goes over the names, dtypes, shapes and bytes of all tensors, in the order of their
names: it does not depend on the folder, on the number of files or on their metadata. Of a model
larger than `WHOLE` bytes every tensor is sampled, evenly from its first byte to its last: any
training that reaches a tensor as a whole (all weights of it, or a merged adapter) changes the
digest, while a change of a few rows of a large table can be missed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# models up to so many bytes are read as a whole; of larger tensors of others so many pieces
WHOLE = 256 * 2**20
_PIECES, _PIECE = 64, 4096


def fingerprint(location: str) -> str | None:
    """sha256, in hex, of the weights of a location; None: they are not on this machine.

    Raises:
        OSError, ValueError: a file can't be read, or is not safetensors.
    """
    folder = on_disk(location)
    if folder is None:
        return None
    files = weight_files(folder)
    stamps = tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _fingerprint(folder, stamps) if files else None


def on_disk(location: str) -> Path | None:
    """The folder of a location: of a Hub id what was downloaded of it; None: nothing was."""
    if Path(location).is_dir():
        return Path(location)
    try:
        found = try_to_load_from_cache(location, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read; a folder may hold the weights twice."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        try:
            named = [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / INDEX} has no weight_map") from error
        # of a Hub id the configuration may be here, and weights not yet
        return named if all(file.is_file() for file in named) else []
    return sorted(folder.glob("*.safetensors"))


# the stamps stand for the content: a folder that is written anew is read anew
@lru_cache(maxsize=64)
def _fingerprint(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    headers = {name: header(folder / name) for name, *_ in stamps}
    tensors = {
        tensor: (name, begin, entry)
        for name, (begin, entries) in headers.items()
        for tensor, entry in entries.items()
    }
    total = sum(end - start for *_, entry in tensors.values() for start, end in [_span(entry)])
    found = hashlib.sha256()
    with ExitStack() as stack:
        opened = {name: stack.enter_context(_opened(folder / name)) for name in headers}
        for tensor, (name, begin, entry) in sorted(tensors.items()):
            start, end = _span(entry)
            found.update(json.dumps([tensor, entry["dtype"], entry["shape"]]).encode())
            for at, size in _pieces(end - start, total <= WHOLE):
                opened[name].seek(begin + start + at)
                found.update(opened[name].read(size))
    return found.hexdigest()


def _pieces(size: int, whole: bool) -> Iterator[tuple[int, int]]:
    """Where the pieces of a tensor of `size` bytes begin, and how long they are."""
    if whole or size <= _PIECES * _PIECE:
        yield 0, size
        return
    for number in range(_PIECES):
        yield (size - _PIECE) * number // (_PIECES - 1), _PIECE


def header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and its table of them."""
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            table = json.loads(stream.read(length))
        except (struct.error, ValueError) as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
    table.pop("__metadata__", None)
    return 8 + length, table


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    return int(start), int(end)


def _opened(file: Path) -> io.FileIO:
    stream = io.FileIO(file)
    if hasattr(os, "posix_fadvise"):
        # else the system would read far ahead of each piece
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return stream
