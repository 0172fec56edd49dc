"""Private interfaces of torch, read from torch 2.13.0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Children = dict[str, torch.nn.Module | None]


def default_store() -> Any:
    """The store by which the workers of the default process group have met.

    Missing: `init_process_group` makes it from an address, and does not give it back.
    """
    found: Any = _get_default_store()
    return found


def shard_offsets(tensor: DTensor) -> tuple[int, ...]:
    """Where this worker's shard begins in each dimension of the whole tensor.

    Missing: a DTensor tells its placements alone, and shards of uneven sizes follow torch's rules.
    """
    mesh, placements = tensor.device_mesh, tensor.placements
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return tuple(offsets)


def as_shard(local: torch.Tensor, pattern: DTensor, shape: tuple[int, ...]) -> DTensor:
    """`local` as this worker's shard of a tensor of `shape`, sharded as `pattern` is.

    Missing: `DTensor.from_local` moves what is in host memory, pages too, to the mesh's device.
    """
    stride = torch.empty(shape, device="meta").stride()
    meta = TensorMeta(torch.Size(shape), stride, local.dtype)
    spec = DTensorSpec(pattern.device_mesh, pattern.placements, tensor_meta=meta)
    made: Any = DTensor
    shard: DTensor = made(local, spec, requires_grad=False)
    return shard


def bare_copy(
    module: torch.nn.Module, child: Callable[[str, torch.nn.Module | None], torch.nn.Module | None]
) -> torch.nn.Module:
    """A copy of `module` that shares its weights, without its hooks, with other children.

    Missing: `copy.copy` shares the dictionaries of hooks and children with the original.

    Args:
        child: gives the child of the copy for a name and the child of `module`.
    """
    made = copy.copy(module)
    made.__dict__ |= {"_forward_hooks": {}, "_forward_pre_hooks": {}}
    children: Children = module._modules
    made._modules = {name: child(name, part) for name, part in children.items()}
    return made


def scalar_overflow_flags(scaler: ShardedGradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Have a scaler tell the optimizer of an overflow in scalars, ().

    Missing: workers reduce flags of shape (1,), which AdamW's fused step does not take.
    """
    state: dict[str, Any] = scaler._per_optimizer_states[id(optimizer)]
    flags = state["found_inf_per_device"]
    state["found_inf_per_device"] = {kind: flag.view(()) for kind, flag in flags.items()}
