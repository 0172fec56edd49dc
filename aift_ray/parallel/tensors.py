"""Tensors of which each worker may hold a share (DTensor), and ordinary ones, treated alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_


def is_shared_out(module: torch.nn.Module) -> bool:
    """Whether weights of `module` are shared out, so that a forward needs other workers."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def widened(module: torch.nn.Module) -> torch.nn.Module:
    """`module` with its trained weights in fp32, in place; those shared out already are so."""
    for weight in module.parameters():
        if weight.requires_grad and not isinstance(weight, DTensor):
            weight.data = weight.data.float()
    return module


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; where it is shared out, every worker must call this alike."""
    if not isinstance(tensor, DTensor):
        return tensor
    # shares that lie in host memory are gathered by the devices
    gathered: Any = tensor.to(tensor.device_mesh.device_type)
    full: torch.Tensor = gathered.full_tensor()
    return full


def shared_like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """This worker's share of `tensor` where `pattern`, of the same shape, is shared out."""
    if not isinstance(pattern, DTensor) or tensor.shape != pattern.shape:
        return tensor
    mesh = pattern.device_mesh
    # each worker has read the whole tensor: nothing needs to be sent
    share: torch.Tensor = distribute_tensor(
        tensor.to(mesh.device_type), mesh, pattern.placements, src_data_rank=None
    )
    return share.to(pattern.device)


def clip_gradients(parameters: Iterable[torch.Tensor], limit: float) -> float:
    """Scale all gradients down to the norm `limit`, 0 for none; their norm before that.

    torch's own norm refuses a mixture of shared and ordinary gradients, and sums in fp32: of a
    large matrix the sum then depends, in the fifth digit, on how it is shared out.
    """
    alike: dict[Any, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault(_spread(parameter.grad), []).append(parameter)
    squares = [_square([p.grad for p in group], how) for how, group in alike.items()]
    norm = torch.stack(squares).sum().sqrt()
    for group in alike.values():
        clip_grads_with_norm_(group, limit or math.inf, norm)
    return float(norm)


def _spread(tensor: torch.Tensor) -> Any:
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


def _square(gradients: list[Any], how: Any) -> torch.Tensor:
    """The sum of squares of gradients that are all spread as `how`, in double precision."""
    own = [g.to_local() if how else g for g in gradients]
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in own]
    square = torch.stack(norms).square().sum()
    if how is None:
        return square
    mesh, placements = how
    square = square.to(mesh.device_type)
    parts = [Partial() if placement.is_shard() else placement for placement in placements]
    return whole(DTensor.from_local(square, mesh, parts))
