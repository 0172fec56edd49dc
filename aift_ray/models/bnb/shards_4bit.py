"""Weights in 4 bits that are quantized one by one, of which a worker keeps its shard alone.

transformers quantizes a whole model on the GPU of the process that loads it. Where FSDP shares the
weights out, no worker needs more than its shard: each matrix is quantized on the worker's device
and cut, and the shard waits in host memory until FSDP takes the block that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

# attribute of a module: {name of a parameter of which it has a shard: rows of the whole}
_ROWS = "rows_of_shards"


@dataclass(frozen=True)
class Loading:
    """How 4-bit weights are loaded.

    Attributes:
        device: where they are quantized; they are kept in host memory.
        rank, workers: the shard that is kept, and of how many.
    """

    device: torch.device
    rank: int = 0
    workers: int = 1

    def shard(self, data: torch.Tensor) -> torch.Tensor:
        """A copy in host memory of the rows that FSDP gives this worker."""
        parts = data.chunk(self.workers)
        mine = parts[self.rank] if self.rank < len(parts) else data[:0]
        return mine.to("cpu", copy=True)


_now: list[Loading] = []


@contextmanager
def loading(how: Loading | None) -> Iterator[None]:
    """A time in which `from_pretrained` loads 4-bit weights so; None: as transformers does."""
    if how is None:
        yield
        return
    _now.append(how)
    try:
        yield
    finally:
        _now.pop()


def present() -> Loading | None:
    """How 4-bit weights are loaded now."""
    return _now[-1] if _now else None


def note(module: nn.Module, name: str, rows: int) -> None:
    """Remember that a parameter of `module` is a shard of so many rows."""
    module.__dict__.setdefault(_ROWS, {})[name] = rows


def states_to(module: nn.Module, device: torch.device) -> None:
    """Move bitsandbytes' scales of `module`, which are whole on every worker."""
    state: Any = getattr(module, "quant_state", None)
    # of linear layers one, of experts one for each weight
    for each in [state] if state is not None else getattr(module, "states", {}).values():
        each.to(device)


def gather_shards(block: nn.Module, device: torch.device) -> None:
    """Have each worker hold `block` whole, on its device; every worker must call this."""
    workers = dist.get_world_size()
    for module in block.modules():
        for name, rows in module.__dict__.pop(_ROWS, {}).items():
            weight = module.get_parameter(name)
            # all shards have the size of the first: the last may be smaller
            size = -(-rows // workers)
            own = weight.data.new_zeros((size, *weight.shape[1:]), device=device)
            own[: len(weight)] = weight.data
            full = own.new_empty((size * workers, *weight.shape[1:]))
            dist.all_gather_single(full, own)
            weight.data = full[:rows]
            states_to(module, device)


@contextmanager
def whole_on_paper(block: nn.Module, mesh: DeviceMesh, device: torch.device) -> Iterator[None]:
    """A time in which FSDP may shard `block`: shards have the shapes of the whole, and no memory.

    After it each parameter is what FSDP made of it, with this worker's shard on the device.
    """
    held = {
        (module, name): module.get_parameter(name)
        for module in block.modules()
        for name in module.__dict__.get(_ROWS, ())
    }
    for module, name in held:
        rows = module.__dict__[_ROWS][name]
        shape = (rows, *held[module, name].shape[1:])
        stand_in = torch.empty(shape, dtype=held[module, name].dtype, device="meta")
        module.register_parameter(name, nn.Parameter(stand_in, requires_grad=False))
    yield
    for (module, name), shard in held.items():
        made: Any = module.get_parameter(name)
        own = DTensor.from_local(
            shard.detach().as_subclass(torch.Tensor).to(device),
            mesh,
            [Shard(0)],
            run_check=False,
            shape=made.shape,
            stride=made.stride(),
        )
        module.register_parameter(name, nn.Parameter(own, requires_grad=False))
        states_to(module, device)
    for module, _ in held:
        module.__dict__.pop(_ROWS, None)
