"""Sharded data parallel: each worker holds a share of every weight and its optimizer state.

Fully sharded, a block's weights are gathered just before it is used and dropped after. Gradients
are reduced to shares in each micro-step, not once a step: whole gradients would take the memory
that sharding saves. The stages of ZeRO keep more of it, and send less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from aift_ray.models.bnb.shards_4bit import whole_on_paper
from aift_ray.models.decoder import decoder_blocks
from aift_ray.parallel.dtensor_utils import widened
from aift_ray.parallel.group import Group, begin_alone
from aift_ray.parallel.protocol import LossModel, ParallelModel
from aift_ray.parallel.torch_model import TorchModel


def wrap(
    module: LossModel,
    group: Group,
    compute: torch.dtype,
    keep_weights: bool = False,
    keep_gradients: bool = False,
    offload: bool = False,
    kept: torch.dtype = torch.float32,
) -> ParallelModel:
    """`module`, its weights sharded over the group in place; as it is on a worker that is alone,
    which may move them to host memory.

    Args:
        module: holds the language model as `model`; its forward and its `generate` are the ways
            in. What lies outside the blocks (embeddings, last norm, output layer, which may be
            one weight) is gathered for the whole of a forward and backward pass.
        compute: dtype in which weights are gathered; gradients are reduced in fp32.
        keep_weights: blocks stay gathered from the forward to the backward pass (ZeRO 2).
        keep_gradients: whole gradients are kept until the last micro-step, and weights stay
            gathered until then (ZeRO 1).
        offload: shares of weights, gradients and optimizer state lie in host memory, and the
            optimizer's step is taken there; blocks are sent to the GPU when they are gathered.
        kept: dtype of the trained weights, and of their gradients between micro-steps.
    """
    if group.world_size == 1 and not offload:
        widened(module, kept).to(group.device)
        return TorchModel(module, group)
    begin_alone(group)
    mesh = init_device_mesh(group.device.type, (group.world_size,))
    narrow = None if compute is torch.float32 else compute
    policy = MixedPrecisionPolicy(
        param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    share = partial(fully_shard, mesh=mesh, mp_policy=policy)
    if offload:
        share = partial(share, offload_policy=CPUOffloadPolicy())
    for block in decoder_blocks(module.model):
        with whole_on_paper(block, mesh, group.device):
            share(widened(block, kept), reshard_after_forward=not keep_weights)
    share(widened(module, kept))
    for name in ("generate", "decode"):
        register_fsdp_forward_method(module, name)
    assert isinstance(module, FSDPModule)
    # torch gathers what lies outside the blocks once for both passes
    drops = {part: not keep_weights and part is not module for part in _sharded(module)}
    module.whole_weights = partial(_whole_weights, module, drops)
    if not offload:
        module.to(group.device)
    else:
        for buffer in module.buffers():
            buffer.data = buffer.data.to(group.device)
    if not keep_gradients:
        return TorchModel(module, group, module, averaged=group.world_size)
    whole = partial(_kept, module)
    return TorchModel(module, group, module, whole, group.world_size)


def drop_after_forward(module: LossModel) -> None:
    """Keep no weight gathered between forward passes, not even those outside the blocks."""
    if isinstance(module, FSDPModule):
        module.set_reshard_after_forward(True)


def _sharded(module: LossModel) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def _whole_weights(module: FSDPModule, drops: dict[FSDPModule, bool]) -> Iterator[None]:
    """Forward passes that gather nothing; every worker must enter it, and leaves it by itself.

    Args:
        drops: for each part, whether its weights are dropped after a forward pass otherwise.
    """
    module.set_reshard_after_forward(False)
    for part in drops:
        part.unshard()
    try:
        yield
    finally:
        for part, dropped in drops.items():
            part.set_reshard_after_forward(dropped, recurse=False)
            part.reshard()


@contextmanager
def _kept(module: FSDPModule) -> Iterator[None]:
    """Backward passes that reduce nothing and drop nothing."""
    module.set_requires_gradient_sync(False)
    module.set_reshard_after_backward(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
        module.set_reshard_after_backward(True)
