"""Safetensors files of tensors that are spread over workers: each writes its shard, or one gathers.

The header records where each tensor is in the file, which follows from names and shapes: every
worker knows it. The file is the same, whatever the number of workers and whoever wrote it.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from aift_ray.errors import ModelError
from aift_ray.parallel.dtensor_utils import whole
from aift_ray.parallel.torch_compat import shard_offsets

Tensors = Mapping[str, torch.Tensor]

# names of dtypes in the header of a safetensors file
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
# seconds between looks for the shards of others
_PAUSE = 0.05


def write(path: Path, tensors: Tensors) -> None:
    """Write a file of whole tensors: floating point ones, or codes of 8 bits.

    Raises:
        OSError: it could not be written.
    """
    GatheredTensors({"": tensors}).write("", path)


def gather(tensors: Tensors, put: Callable[[str, torch.Tensor], None] | None) -> None:
    """Gather each tensor, one after the other; every worker must call this alike.

    Args:
        put: takes a tensor under its name; None: this worker takes part, and keeps nothing.

    Raises:
        OSError, ModelError: what `put` raised; only after all took part.
    """
    problem: Exception | None = None
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        try:
            if put and problem is None:
                put(name, full)
        except (OSError, ModelError) as error:
            problem = error
    if problem:
        raise problem


class GatheredTensors:
    """Sets of tensors that worker 0 writes while the others take part, in one order, to the end.

    A set whose gathering has not begun when an error ends the writing is gathered by `ending`.
    """

    def __init__(self, sets: dict[str, Tensors]) -> None:
        self._left = dict(sets)

    def give(self, name: str, put: Callable[[str, torch.Tensor], None]) -> None:
        """Hand a set over, tensor by tensor; worker 0 alone calls this, as `write`.

        Raises:
            OSError, ModelError: of `put`.
        """
        gather(self._left.pop(name), put)

    def write(self, name: str, path: Path, dtype: torch.dtype | None = None) -> None:
        """Write a set; worker 0 alone calls this, in the order that they were given in.

        Args:
            dtype: of the file; None: as the tensors are.

        Raises:
            OSError: it could not be written.
        """
        header, offsets = _header(self._left[name], dtype)
        with _opened(path) as file:
            _write_at(file, 0, header)
            self.give(name, lambda n, t: _write_at(file, offsets[n], _content(t, dtype)))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever happens within, all sets are gathered in the end, as the others do."""
        try:
            yield
        finally:
            while self._left:
                gather(self._left.pop(next(iter(self._left))), None)


class _Shard(NamedTuple):
    """This worker's part `local` of a tensor of `shape`, which begins at `offsets` of it.

    Attributes:
        begin: where the tensor begins in the file.
    """

    local: torch.Tensor
    shape: torch.Size
    offsets: Sequence[int]
    begin: int


class ShardedTensors:
    """What this worker writes of sets of tensors, a file each; nothing is sent.

    Args:
        sets: {name: tensors}, the same names and shapes on every worker.
        copy: whether they are copied to host memory, because they are going to change.
        writes: whether this worker's replica of the model is the one that is written.
    """

    def __init__(self, sets: dict[str, Tensors], copy: bool, writes: bool = True) -> None:
        self._sets: dict[str, tuple[bytes, list[_Shard]]] = {}
        for name, tensors in sets.items():
            header, offsets = _header(tensors, None)
            shards = [_shard(t, offsets[n]) for n, t in tensors.items()] if writes else []
            held = [shard for shard in shards if shard]
            if copy:
                held = [one._replace(local=one.local.to("cpu", copy=True)) for one in held]
            self._sets[name] = header, held

    def write(self, name: str, path: Path) -> None:
        """Write this worker's shards of a set; worker 0 writes the header.

        Raises:
            OSError: they could not be written.
        """
        header, shards = self._sets[name]
        with _opened(path) as file:
            if dist.get_rank() == 0:
                _write_at(file, 0, header)
            for local, shape, offsets, begin in shards:
                for at, piece in _runs(local.to("cpu").contiguous(), shape, offsets):
                    _write_at(file, begin + at * local.element_size(), _content(piece))
            os.fsync(file)

    def write_all(self, folder: Path) -> None:
        """Write each set into the file of its name, and leave a marker in the folder at the end."""
        for name in self._sets:
            self.write(name, folder / name)
        _marker(folder, dist.get_rank()).touch()


def await_others(folder: Path, given_up: Sequence[str]) -> None:
    """Wait until all workers have left their markers in `folder`, and remove them.

    Raises:
        OSError: there is a reason in `given_up`.
    """
    markers = [_marker(folder, rank) for rank in range(1, dist.get_world_size())]
    while not all(marker.exists() for marker in markers):
        if given_up:
            raise OSError(f"a worker did not write its share: {given_up[0]}")
        time.sleep(_PAUSE)
    for marker in markers:
        marker.unlink()


def all_see(folder: Path) -> bool:
    """Whether all workers see the same `folder`; every worker must call this."""
    box = [str(time.time_ns())]
    dist.broadcast_object_list(box, 0)
    marker = folder / f".seen-{box[0]}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    dist.barrier()
    found: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(found, marker.exists())
    if dist.get_rank() == 0:
        marker.unlink()
    return all(found)


def _marker(folder: Path, rank: int) -> Path:
    return folder / f".written-{rank}"


def _header(tensors: Tensors, dtype: torch.dtype | None) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, and where in the file each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, tensor in tensors.items():
        kept = dtype or tensor.dtype
        begins[name], end = end, end + tensor.numel() * kept.itemsize
        place = {"shape": list(tensor.shape), "data_offsets": [begins[name], end]}
        entries[name] = {"dtype": _NAMES[kept], **place}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + begin for name, begin in begins.items()}


def _shard(tensor: torch.Tensor, begin: int) -> _Shard | None:
    """What this worker writes of a tensor; None: nothing."""
    if not isinstance(tensor, DTensor):
        whole_tensor = _Shard(tensor.detach(), tensor.shape, (0,) * tensor.ndim, begin)
        return whole_tensor if dist.get_rank() == 0 else None
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate() or ()
    if any(at and kind.is_replicate() for at, kind in zip(coordinate, placements, strict=True)):
        return None
    local = tensor.to_local().detach()
    return _Shard(local, tensor.shape, shard_offsets(tensor), begin) if local.numel() else None


def _runs(
    local: torch.Tensor, shape: Sequence[int], offsets: Sequence[int], at: int = 0
) -> Iterator[tuple[int, torch.Tensor]]:
    """Parts of a shard that are contiguous in the whole, and at which element they begin."""
    row = math.prod(shape[1:])
    at += offsets[0] * row if offsets else 0
    if tuple(local.shape[1:]) == tuple(shape[1:]):
        yield at, local
        return
    for number, part in enumerate(local):
        yield from _runs(part, shape[1:], offsets[1:], at + number * row)


def _content(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> memoryview:
    flat = tensor.to("cpu", dtype or tensor.dtype).contiguous().flatten()
    content: Any = flat.view(torch.uint8).numpy()
    return memoryview(content)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _write_at(file: int, at: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    # a system writes some 2 GiB at once at most
    while left.nbytes:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written
