"""One file a strategy; `wrap` is the only way in, so the loop does not know which is in use.

What `wrap` gives is called with a batch and returns its loss. It may have methods in place of what
the loop does otherwise: `no_sync`, a context in which backward passes join no workers;
`backward_all`, all micro-batches of a step at once; `gradient_norm`, of the whole model; and
`gather`, for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from aift_ray.config import ParallelConfig
from aift_ray.parallel import ddp, fsdp, model_parallel, pipeline_parallel, tensor_parallel
from aift_ray.parallel.group import Group

_STRATEGIES: dict[str, Callable[[torch.nn.Module, Group, torch.dtype], torch.nn.Module]] = {
    "ddp": ddp.wrap,
    "fsdp": fsdp.wrap,
    "zero3": fsdp.wrap,
    "zero2": partial(fsdp.wrap, keep_weights=True),
    "zero1": partial(fsdp.wrap, keep_weights=True, keep_gradients=True),
    "tensor": tensor_parallel.wrap,
    # on a single device
    "model_parallel": ddp.wrap,
}


def wrap(
    config: ParallelConfig,
    module: torch.nn.Module,
    group: Group,
    compute: torch.dtype,
    layout: Mapping[str, int] | None = None,
) -> torch.nn.Module:
    """Spread `module`, whose forward gives a loss, over the workers of `group`, on its device.

    Args:
        compute: dtype of matrix products.
        layout: {piece of the model: device or stage that holds it}, where the strategy has one.
    """
    if config.offload:
        return fsdp.wrap(module, group, compute, offload=True)
    if layout and config.strategy == "pipeline":
        return pipeline_parallel.wrap(module, group, layout, config.pipeline_schedule)
    if layout:
        return model_parallel.wrap(module, group, layout)
    return _STRATEGIES[config.strategy](module, group, compute)
