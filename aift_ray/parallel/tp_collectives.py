"""What the workers that hold one model together say to each other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import pad

Change = Callable[[torch.Tensor], torch.Tensor]


class MeshGroup:
    """The workers that hold one model together.

    Attributes:
        length: positions of the micro-batch that is computed.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.group = mesh, mesh.get_group()
        self.size, self.rank = mesh.size(), mesh.get_local_rank()
        self.length = 0

    def own(self, length: int) -> slice:
        """What of `length` things is this worker's; the last workers may have fewer, or none."""
        each = -(-length // self.size)
        return slice(min(self.rank * each, length), min((self.rank + 1) * each, length))

    def gather(self, part: torch.Tensor, dim: int, length: int) -> torch.Tensor:
        """The parts of all workers along `dim`, `length` together."""
        part = _lengthened(part, dim, -(-length // self.size)).contiguous()
        every = part.new_empty(self.size, *part.shape)
        dist.all_gather_single(every.flatten(0, 1), part, group=self.group)
        return torch.cat(every.unbind(), dim).narrow(dim, 0, length)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all workers."""
        value = value.contiguous().clone()
        dist.all_reduce(value, group=self.group)
        return value

    def sum_own(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all workers of this worker's positions; `value`: (rows, positions, ...)."""
        length = value.shape[1]
        each = -(-length // self.size)
        parts = torch.stack(_lengthened(value, 1, each * self.size).split(each, 1))
        share = torch.empty_like(parts[0])
        dist.reduce_scatter_single(share, parts.flatten(0, 1), group=self.group)
        mine = self.own(length)
        return share.narrow(1, 0, mine.stop - mine.start)


def _lengthened(tensor: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    return pad(tensor.movedim(dim, -1), (0, missing)).movedim(-1, dim)


class _CrossingContext(FunctionCtx):
    back: Change


class _Crossing(torch.autograd.Function):
    """Between what a worker has and what all have: one way forward, the other way back."""

    @staticmethod
    def forward(
        ctx: _CrossingContext,
        value: torch.Tensor,
        there: Change,
        back: Change,
    ) -> torch.Tensor:
        ctx.back = back
        return there(value)

    @staticmethod
    def backward(
        ctx: _CrossingContext, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


def crossed(value: torch.Tensor, there: Change, back: Change) -> torch.Tensor:
    """`there` of a value, whose gradient is `back` of the result's."""
    apply: Any = _Crossing.apply
    result: torch.Tensor = apply(value, there, back)
    return result


def _same(value: torch.Tensor) -> torch.Tensor:
    return value.view_as(value)


def cut(value: torch.Tensor, tp_group: MeshGroup) -> torch.Tensor:
    """This worker's positions of what all workers have whole."""
    tp_group.length = length = value.shape[1]
    mine = tp_group.own(length)
    return crossed(
        value, lambda x: x[:, mine].contiguous(), lambda g: tp_group.gather(g, 1, length)
    )


def enter(value: torch.Tensor, tp_group: MeshGroup) -> torch.Tensor:
    """All positions, to be multiplied with split matrices: the gradients of all are summed."""
    length = tp_group.length
    return crossed(value, lambda x: tp_group.gather(x, 1, length), tp_group.sum_own)


def leave(value: torch.Tensor, tp_group: MeshGroup) -> torch.Tensor:
    """This worker's positions of the sum of what split matrices gave."""
    length = tp_group.length
    return crossed(value, tp_group.sum_own, lambda g: tp_group.gather(g, 1, length))


def looked_up(value: torch.Tensor, tp_group: MeshGroup) -> torch.Tensor:
    """The sum of what each worker found in its share of a table; all have it whole."""
    return crossed(value, tp_group.sum, _same)


def joined(value: torch.Tensor, tp_group: MeshGroup, length: int) -> torch.Tensor:
    """The parts of all workers along the last dimension, `length` together; all have it whole."""
    mine = tp_group.own(length)
    return crossed(value, lambda x: tp_group.gather(x, -1, length), lambda g: g[..., mine])


def used_in_part(weight: torch.Tensor, tp_group: MeshGroup) -> torch.Tensor:
    """A whole weight of which each worker sees a part of the gradient only."""
    return crossed(weight, _same, tp_group.sum)
