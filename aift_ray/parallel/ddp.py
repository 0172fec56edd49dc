"""Data parallel: a whole model on each worker, gradients averaged by torch."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from aift_ray.parallel.group import Group


def wrap(module: torch.nn.Module, group: Group, compute: torch.dtype) -> torch.nn.Module:
    """`module` with its gradients averaged over the group; itself where it is alone.

    Args:
        compute: makes no difference here; a copy is as it was loaded.
    """
    module = module.to(group.device)
    if group.world == 1:
        return module
    devices = [group.device] if group.device.type == "cuda" else None
    return DistributedDataParallel(
        module, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False
    )
