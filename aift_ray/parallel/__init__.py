"""One file a strategy; `wrap` is the only way in, so the loop does not know which is in use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from aift_ray.config import ParallelConfig
from aift_ray.parallel import ddp, fsdp, tensor
from aift_ray.parallel.group import Group

_STRATEGIES: dict[str, Callable[[torch.nn.Module, Group, torch.dtype], torch.nn.Module]] = {
    "ddp": ddp.wrap,
    "fsdp": fsdp.wrap,
    "zero3": fsdp.wrap,
    "zero2": partial(fsdp.wrap, keep_weights=True),
    "zero1": partial(fsdp.wrap, keep_weights=True, keep_gradients=True),
    "tensor": tensor.wrap,
}


def wrap(
    config: ParallelConfig, module: torch.nn.Module, group: Group, compute: torch.dtype
) -> torch.nn.Module:
    """Spread `module`, whose forward gives a loss, over the workers of `group`, on its device.

    Args:
        compute: dtype of matrix products.
    """
    if config.offload:
        return fsdp.wrap(module, group, compute, offload=True)
    return _STRATEGIES[config.strategy](module, group, compute)
