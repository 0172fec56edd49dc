"""What the stages of a pipeline send each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist

from aift_ray.parallel.group import Group

_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Wires:
    """One-way connections between neighbouring stages.

    Each way of each pair has a process group of its own: NCCL takes the messages of a group in
    the order in which they are asked for, and would wait for ever for two that cross.

    Args:
        last: number of the last stage; stage s lies on the worker at place s modulo `apart`.
    """

    def __init__(self, group: Group, last: int) -> None:
        self._device = group.device
        self._ways: dict[tuple[int, int], tuple[int, dist.ProcessGroup]] = {}
        self._dtypes: dict[tuple[int, int], torch.dtype] = {}
        self._pending: deque[tuple[dist.Work, torch.Tensor]] = deque()
        pairs = [(s, s + 1) for s in range(last)]
        for replica in range(group.dp_size):
            for start, end in [*pairs, *((e, s) for s, e in pairs)]:
                ranks = [
                    replica * group.model_parallel_size + stage % group.model_parallel_size
                    for stage in (start, end)
                ]
                made = dist.new_group(ranks)
                if group.rank in ranks:
                    self._ways[start, end] = sum(ranks) - group.rank, made

    def send(self, start: int, end: int, tensor: torch.Tensor) -> None:
        """Send a tensor from stage `start` to its neighbour `end`, without waiting for it."""
        other, group = self._ways[start, end]
        tensor = tensor.detach().contiguous()
        if (start, end) not in self._dtypes:
            # the first message says of what kind all are
            self._dtypes[start, end] = tensor.dtype
            kind = torch.tensor([_DTYPES.index(tensor.dtype)], device=self._device)
            dist.send(kind, other, group)
        assert tensor.dtype is self._dtypes[start, end]
        work = dist.isend(tensor, other, group)
        assert work is not None
        self._pending.append((work, tensor))

    def receive(self, start: int, end: int, shape: Sequence[int]) -> torch.Tensor:
        """The next tensor from stage `start` to its neighbour `end`, of a known shape."""
        other, group = self._ways[start, end]
        if (start, end) not in self._dtypes:
            kind = torch.zeros(1, dtype=torch.int64, device=self._device)
            dist.recv(kind, other, group)
            self._dtypes[start, end] = _DTYPES[int(kind)]
        tensor = torch.empty(*shape, dtype=self._dtypes[start, end], device=self._device)
        dist.recv(tensor, other, group)
        return tensor

    def settle(self, pending: int = 0) -> None:
        """Wait until all but the `pending` last messages have left."""
        while len(self._pending) > pending:
            self._pending.popleft()[0].wait()
