"""Tensors of which each worker may hold a share (DTensor), and ordinary ones, treated alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from torch.nn.utils import clip_grads_with_norm_

from aift_ray.parallel import deepspeed_compat
from aift_ray.parallel.torch_compat import bare_copy, shard_offsets

Layout = tuple[DeviceMesh, tuple[Placement, ...]]
Alike = dict[tuple[Layout | None, torch.device], list[torch.Tensor]]

# bytes of gradients sent at once
_BUCKET = 2**26
# numbers whose squares are summed in fp32; their sum is right to 1e-8
_CHUNK = 2**12
# a smaller sum of squares may have lost some
_SMALLEST = 1e-20
# what torch adds to a norm when it clips
_EPSILON = 1e-6


def is_shared_out(module: torch.nn.Module) -> bool:
    """Whether weights of `module` are shared out, so that a forward needs other workers."""
    return any(isinstance(p, DTensor) or is_partitioned(p) for p in module.parameters())


def is_partitioned(tensor: torch.Tensor) -> bool:
    """Whether a weight is partitioned by DeepSpeed's ZeRO 3."""
    return hasattr(tensor, "ds_id")


def without_partitioning(module: torch.nn.Module) -> torch.nn.Module:
    """`module`; of one that is partitioned a copy that gathers and releases nothing by itself.

    The whole loss has its weights gathered, and others may stand in for them.
    """
    if not any(is_partitioned(p) for p in module.parameters()):
        return module
    return bare_copy(module, lambda _, part: part and without_partitioning(part))


def widened(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """`module` with its trained weights in `dtype`, in place; those shared out already are so."""
    for weight in module.parameters():
        if weight.requires_grad and not isinstance(weight, DTensor):
            weight.data = weight.data.to(dtype)
    return module


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; where it is shared out, every worker must call this alike."""
    if is_partitioned(tensor):
        return deepspeed_compat.whole_partitioned(tensor)
    tensor = tensor.detach()
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


def shared_as(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """This worker's part, an ordinary tensor, of one that is shared out as `pattern` is."""
    if not isinstance(pattern, DTensor):
        return tensor
    mesh = pattern.device_mesh
    share = distribute_tensor(
        tensor.to(mesh.device_type), mesh, pattern.placements, src_data_rank=None
    )
    return share.to_local()


def own_shard(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]] | None:
    """This worker's part of a tensor, and where in it that begins; None: another has it too."""
    if not isinstance(tensor, DTensor):
        return (tensor.detach(), (0,) * tensor.ndim) if dist.get_rank() == 0 else None
    coordinate = tensor.device_mesh.get_coordinate() or ()
    kinds = zip(coordinate, tensor.placements, strict=True)
    if any(at and kind.is_replicate() for at, kind in kinds):
        return None
    return tensor.to_local().detach(), shard_offsets(tensor)


class HostCopy:
    """Copies tensors to host memory; what shared memory before shares it after.

    Those that are sharded are gathered one by one; a worker that does not `keep` them takes part
    and has None.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._seen: dict[Any, torch.Tensor | None] = {}

    def __call__(self, value: object) -> Any:
        if isinstance(value, dict):
            return {name: self(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self(part) for part in value]
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(value, DTensor) or is_partitioned(value):
            # the same on every worker, which an address in memory need not be
            key: Any = id(value)
        else:
            key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or key not in self._seen:
            full = whole(value)
            self._seen[key] = full.to("cpu", copy=True) if self._keep else None
        return self._seen[key]


def gradient_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients together, in double precision.

    torch's own refuses a mixture of shared and ordinary gradients, and sums in fp32: of a large
    matrix the sum then depends, in the fifth digit, on how it is shared out.
    """
    alike = _alike(parameters)
    squares = [
        _square([p.grad for p in group if p.grad is not None], how)
        for (how, _), group in alike.items()
    ]
    # one after the other where they lie on several devices
    return sum((s.to(squares[0].device) for s in squares), torch.zeros(())).sqrt()


def clip_gradients(
    parameters: Iterable[torch.Tensor],
    limit: float,
    norm_of: Callable[[Iterable[torch.Tensor]], torch.Tensor] = gradient_norm,
) -> torch.Tensor:
    """Scale all gradients down to the norm `limit`, 0 for none; their norm before that, ().

    A device is not waited for.

    Args:
        norm_of: the norm, where this process holds a part of the weights alone.
    """
    parameters = list(parameters)
    norm = norm_of(parameters)
    for (_, device), group in _alike(parameters).items():
        # in host memory a scale of 1 costs as much as any other; a device's would be waited for
        if in_host(device) and float(norm) + _EPSILON <= (limit or math.inf):
            continue
        clip_grads_with_norm_(group, limit or math.inf, norm)
    return norm


def in_host(device: torch.device) -> bool:
    """Whether tensors of a device are at hand without waiting for it."""
    return device.type == "cpu"


def sum_gradients(parameters: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    """Sum each gradient over the workers of `group`, many in one message."""
    for alike in _alike(parameters).values():
        bucket: list[torch.Tensor] = []
        for number, parameter in enumerate(alike, 1):
            assert parameter.grad is not None
            bucket.append(parameter.grad)
            if number == len(alike) or sum(g.nbytes for g in bucket) >= _BUCKET:
                flat = torch.cat([g.flatten() for g in bucket])
                dist.all_reduce(flat, group=group)
                for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                    grad.copy_(part.view_as(grad))
                bucket = []


def _alike(parameters: Iterable[torch.Tensor]) -> Alike:
    """Parameters with gradients, by how and where these lie."""
    found: Alike = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            how = (grad.device_mesh, grad.placements) if isinstance(grad, DTensor) else None
            found.setdefault((how, grad.device), []).append(parameter)
    return found


def _square(gradients: list[torch.Tensor], how: Layout | None) -> torch.Tensor:
    """The sum of squares of gradients that are all spread as `how`, in double precision."""
    own = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    square = torch.stack([_sum_of_squares(g) for g in own]).sum()
    if how is None:
        return square
    mesh, placements = how
    square = square.to(mesh.device_type)
    parts = [Partial() if placement.is_shard() else placement for placement in placements]
    return whole(DTensor.from_local(square, mesh, parts))


def _sum_of_squares(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of squares of a tensor's numbers, in double precision.

    torch's norm in double precision copies a tensor in host memory to fp64 and is 20 times slower
    than memory; sums of few squares in fp32, added in fp64, are as good.
    """
    if not in_host(tensor.device) or tensor.dtype is not torch.float32:
        return _in_double(tensor)
    flat = tensor.reshape(-1)
    rows, rest = divmod(flat.numel(), _CHUNK)
    chunks = flat[: rows * _CHUNK].view(rows, _CHUNK)
    total = torch.linalg.vector_norm(chunks, dim=1).double().square().sum()
    if rest:
        total += _in_double(flat[rows * _CHUNK :])
    # beyond that, single squares may leave the range of fp32
    return total if _SMALLEST < float(total) < math.inf else _in_double(tensor)


def _in_double(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm.square()
