"""Safetensors files of tensors that are spread over workers: each writes its shard, or one gathers.

The header records where each tensor is in the file, which follows from names and shapes: every
worker knows it. The file is the same, whatever the number of workers and whoever wrote it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from aift_ray.models.safetensors_layout import content, new_header
from aift_ray.parallel.dtensor_utils import own_shard, whole

Tensors = Mapping[str, torch.Tensor]

# seconds between looks for the shards of others
_PAUSE = 0.05


class GatheredTensors:
    """Sets of tensors that worker 0 writes while the others take part, in one order, to the end."""

    def __init__(self, sets: Mapping[str, Tensors]) -> None:
        self._sets = sets
        self._whole = {name: _gathered(tensors) for name, tensors in sets.items()}

    def whole(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a set by name, each gathered when it is taken, once.

        Worker 0 alone calls this and `write`, in the order that the sets were given in.
        """
        return self._whole[name]

    def write(self, name: str, path: Path, dtype: torch.dtype | None = None) -> None:
        """Write a set.

        Args:
            dtype: of the file; None: as the tensors are.

        Raises:
            OSError: it could not be written.
        """
        with path.open("wb") as file:
            file.write(new_header(self._sets[name], dtype)[0])
            for _, tensor in self.whole(name):
                file.write(content(tensor, dtype))

    def finish(self) -> None:
        """Take part in the gathering of all that is left; every worker must call this."""
        for left in self._whole.values():
            for _ in left:
                pass


def _gathered(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        yield name, whole(tensor.detach())


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

    def __init__(self, sets: Mapping[str, Tensors], copy: bool, writes: bool = True) -> None:
        self._sets: dict[str, tuple[bytes, list[_Shard]]] = {}
        for name, tensors in sets.items():
            start, offsets = new_header(tensors)
            self._sets[name] = start, []
            for key, tensor in tensors.items():
                own = own_shard(tensor) if writes else None
                if own:
                    local = own[0].to("cpu", copy=True) if copy else own[0]
                    self._sets[name][1].append(_Shard(local, tensor.shape, own[1], offsets[key]))

    def write(self, name: str, path: Path) -> None:
        """Write this worker's shards of a set; worker 0 writes the header.

        Raises:
            OSError: they could not be written.
        """
        start, shards = self._sets[name]
        # all workers write into one file: none truncates it
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            if dist.get_rank() == 0:
                file.write(start)
            for local, shape, offsets, begin in shards:
                for at, piece in _runs(local.to("cpu").contiguous(), shape, offsets):
                    file.seek(begin + at * local.element_size())
                    file.write(content(piece))
            file.flush()
            os.fsync(file.fileno())

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


def _marker(folder: Path, rank: int) -> Path:
    return folder / f".written-{rank}"


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
