"""Each worker writes what it holds of every tensor at its place in the file; nothing is gathered.

The file is an ordinary safetensors file, the same whatever the number of workers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from aift_ray.engine.checkpoint.gathered import Tensors, header

# seconds between looks for the shares of others
_PAUSE = 0.05


@dataclass(frozen=True)
class _Shard:
    """This worker's part of a tensor of `shape`, that begins at `offsets` of it.

    Attributes:
        begin: where the tensor begins in the file.
    """

    local: torch.Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    begin: int

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        """What lies in one piece in the file, and where."""
        width = self.local.element_size()
        for at, piece in _runs(self.local.to("cpu").contiguous(), self.shape, self.offsets):
            yield self.begin + at * width, piece


class ShardedTensors:
    """What this worker writes of sets of tensors, a file each.

    Args:
        sets: {name: tensors}, the same names and shapes on every worker.
        copy: whether they are copied to host memory, for they are going to change.
        writes: whether this worker's replica of the model is the one that is written.
    """

    def __init__(self, sets: dict[str, Tensors], copy: bool, writes: bool = True) -> None:
        self._headers = {name: header(tensors, None) for name, tensors in sets.items()}
        self._parts = {
            name: list(_parts(tensors, len(self._headers[name]), copy)) if writes else []
            for name, tensors in sets.items()
        }

    def write(self, name: str, path: Path) -> None:
        """Write this worker's share of a set; worker 0 writes the names and places of all.

        Raises:
            OSError: it could not be written.
        """
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            if dist.get_rank() == 0:
                _write_at(file, 0, memoryview(self._headers[name]))
            for part in self._parts[name]:
                for at, piece in part.pieces():
                    content: Any = piece.flatten().view(torch.uint8).numpy()
                    _write_at(file, at, memoryview(content))
            os.fsync(file)
        finally:
            os.close(file)


class ShardWriter:
    """Writes the shares of a worker that is not worker 0, while training goes on."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, "share-writer")
        self._writing: Future[None] | None = None

    def start(self, shares: ShardedTensors, files: dict[str, Path]) -> None:
        """Write each set into its file, all in one folder, and leave a mark there in the end."""
        self._writing = self._threads.submit(_write_all, shares, files)

    def wait(self) -> str | None:
        """Wait until the last share is on the disk; why it is not."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except OSError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Wait for what is on its way."""
        self._threads.shutdown()


def _write_all(shares: ShardedTensors, files: dict[str, Path]) -> None:
    for name, path in files.items():
        shares.write(name, path)
    _mark(path.parent, dist.get_rank()).touch()


def await_others(folder: Path, given_up: Sequence[str]) -> None:
    """Wait until all workers have left their marks in `folder`, and remove them.

    Raises:
        OSError: somebody has given it up.
    """
    marks = [_mark(folder, rank) for rank in range(1, dist.get_world_size())]
    while not all(mark.exists() for mark in marks):
        if given_up:
            raise OSError(f"a worker did not write its share: {given_up[0]}")
        time.sleep(_PAUSE)
    for mark in marks:
        mark.unlink()


def all_see(folder: Path) -> bool:
    """Whether all workers see the same `folder`; every worker must call this."""
    box = [str(time.time_ns())]
    dist.broadcast_object_list(box, 0)
    mark = folder / f".seen-{box[0]}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    dist.barrier()
    found: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(found, mark.exists())
    if dist.get_rank() == 0:
        mark.unlink()
    return all(found)


def _mark(folder: Path, rank: int) -> Path:
    return folder / f".written-{rank}"


def _parts(tensors: Tensors, begin: int, copy: bool) -> Iterator[_Shard]:
    for tensor in tensors.values():
        held = _held(tensor)
        if held is not None:
            local, offsets = held
            local = local.to("cpu", copy=True) if copy else local
            yield _Shard(local, tuple(tensor.shape), offsets, begin)
        begin += tensor.numel() * tensor.element_size()


def _held(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]] | None:
    """What this worker writes of a tensor, and where that begins; None: nothing."""
    if not isinstance(tensor, DTensor):
        return (tensor.detach(), (0,) * tensor.ndim) if dist.get_rank() == 0 else None
    mesh, placements = tensor.device_mesh, tensor.placements
    place = mesh.get_coordinate() or ()
    if any(at and kind.is_replicate() for at, kind in zip(place, placements, strict=True)):
        return None
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    local = tensor.to_local().detach()
    return (local, tuple(offsets)) if local.numel() else None


def _runs(
    local: torch.Tensor, shape: Sequence[int], offsets: Sequence[int], at: int = 0
) -> Iterator[tuple[int, torch.Tensor]]:
    """Pieces of a part that are in one piece in the whole, and at which element they begin."""
    row = math.prod(shape[1:])
    at += offsets[0] * row if offsets else 0
    if tuple(local.shape[1:]) == tuple(shape[1:]):
        yield at, local
        return
    for number, part in enumerate(local):
        yield from _runs(part, shape[1:], offsets[1:], at + number * row)


def _write_at(file: int, at: int, content: memoryview) -> None:
    # a system writes some 2 GiB at once at most
    while content.nbytes:
        written = os.pwrite(file, content, at)
        content, at = content[written:], at + written
