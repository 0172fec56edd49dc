"""Data parallel: a whole model on each worker, gradients averaged by torch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, ParallelModel
from aift_ray.parallel.torch_model import TorchModel


def wrap(module: LossModel, group: Group, compute: torch.dtype) -> ParallelModel:
    """`module` with its gradients averaged over the group; as it is on a worker that is alone.

    Args:
        compute: makes no difference here; a copy is as it was loaded.
    """
    module.to(group.device)
    if group.world_size == 1:
        return TorchModel(module, group)
    copies = replicate(module, group)
    return TorchModel(module, group, copies, copies.no_sync, group.world_size)


def replicate(module: torch.nn.Module, group: Group) -> DistributedDataParallel:
    """`module` with its gradients averaged over the group.

    Trained weights begin as worker 0's; those that are not trained must be equal already.
    """
    devices = [group.device] if group.device.type == "cuda" else None
    # frozen weights come from one folder: to send them again takes seconds, and tells nothing new
    spread = DistributedDataParallel(
        module,
        device_ids=devices,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        init_sync=False,
    )
    for weight in module.parameters():
        if weight.requires_grad:
            dist.broadcast(weight.data, 0)
    return spread
