"""Data parallel: a whole model on each worker, gradients averaged by torch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aift_ray.parallel.group import Group


def wrap(module: torch.nn.Module, group: Group, compute: torch.dtype) -> torch.nn.Module:
    """`module` with its gradients averaged over the group; itself where it is alone.

    Trained weights begin as worker 0's; those that are not trained must be equal already.

    Args:
        compute: makes no difference here; a copy is as it was loaded.
    """
    module = module.to(group.device)
    if group.world_size == 1:
        return module
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
