"""Context parallel: the tokens of a row are divided over workers, whose attention is joined.

All layers but attention see each token by itself. In attention each worker has the queries of its
own tokens, and gathers the keys and values of all; their gradients are summed over the workers
on the way back. The weights are whole on each worker, or shared out by FSDP over all of them, and
their gradients are summed by either.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh

from aift_ray.parallel.group import Group
from aift_ray.parallel.tp_collectives import MeshGroup, crossed


class ContextGroup:
    """The workers that divide the tokens of the same rows."""

    def __init__(self, group: Group) -> None:
        shape = (group.dp_size, group.context_parallel_size)
        mesh = init_device_mesh(group.device.type, shape, mesh_dim_names=("data", "context"))
        self._cp_group = MeshGroup(mesh["context"])

    def gather(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole row, in its order, from those of this worker's two chunks.

        Args:
            key, value: (1, heads, tokens, size), sizes may differ.
        """
        cp_group, own = self._cp_group, torch.cat([key, value], dim=-1).transpose(1, 2)
        length = own.shape[1] * cp_group.size
        by_worker = crossed(own, lambda x: cp_group.gather(x, 1, length), cp_group.sum_own)
        chunks = by_worker.split(own.shape[1] // 2, dim=1)
        # first chunks in the order of the workers, second ones in the opposite order
        row = torch.cat([*chunks[::2], *chunks[::-2]], dim=1).transpose(1, 2)
        return row[..., : key.shape[-1]], row[..., key.shape[-1] :]

    def total(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the whole row, whose gradient is that of this worker's part of it."""
        return crossed(loss, self._cp_group.sum, lambda gradient: gradient)
