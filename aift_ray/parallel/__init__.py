"""One file a strategy; `wrap` and `hold` are the only ways in, to train a model or to ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from aift_ray.config import ParallelConfig, deepspeed_config
from aift_ray.parallel import (
    ddp,
    deepspeed_zero,
    fsdp,
    model_parallel,
    pipeline_parallel,
    tensor_parallel,
)
from aift_ray.parallel.context_parallel import ContextGroup
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, ParallelModel, StageModel

_SHARDED: dict[str, Callable[..., ParallelModel]] = {
    "fsdp": fsdp.wrap,
    "zero3": fsdp.wrap,
    "zero2": partial(fsdp.wrap, keep_weights=True),
    "zero1": partial(fsdp.wrap, keep_weights=True, keep_gradients=True),
}
_STRATEGIES: dict[str, Callable[[LossModel, Group, torch.dtype], ParallelModel]] = {
    "ddp": ddp.wrap,
    "tensor": tensor_parallel.wrap,
    # on a single device
    "model_parallel": ddp.wrap,
}


def wrap(
    config: ParallelConfig,
    module: StageModel,
    group: Group,
    compute: torch.dtype,
    layout: Mapping[str, int] | None = None,
    trained: bool = True,
    kept: torch.dtype = torch.float32,
) -> ParallelModel:
    """Spread `module`, whose forward gives a loss, over the workers of `group`, on its device.

    Args:
        compute: dtype of matrix products.
        layout: {piece of the model: device or stage that holds it}, where the strategy has one.
        trained: whether it gets an optimizer, without which DeepSpeed partitions nothing.
        kept: dtype of the trained weights of a model that is shared out; others are as loaded.
    """
    if group.context_parallel_size > 1:
        module.context = ContextGroup(group)
    if trained and config.by_deepspeed and (group.world_size > 1 or config.keeps_outside):
        options = deepspeed_config.engine_options(config)
        return deepspeed_zero.wrap(module, group, compute, options)
    if config.offload:
        return fsdp.wrap(module, group, compute, offload=True)
    if layout and config.strategy == "pipeline":
        return pipeline_parallel.wrap(module, group, layout, config.pipeline_schedule)
    if layout:
        return model_parallel.wrap(module, group, layout)
    if config.is_sharded_data_parallel:
        return _SHARDED[config.strategy](module, group, compute, kept=kept)
    return _STRATEGIES[config.strategy](module, group, compute)


def hold(
    config: ParallelConfig,
    module: LossModel,
    group: Group,
    compute: torch.dtype,
    kept: torch.dtype = torch.float32,
) -> LossModel:
    """`module` on the workers' devices, sharded where the strategy does so; it is never trained."""
    if config.is_sharded_data_parallel:
        fsdp.wrap(module, group, compute, kept=kept)
        fsdp.drop_after_forward(module)
    return module.to(group.device).requires_grad_(False)
