"""Model parallel: the layers of a model over the devices of one process, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device

from aift_ray.models.decoder import causal_model
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, ParallelModel
from aift_ray.parallel.torch_model import TorchModel
from aift_ray.planning.partition import HOST


def device_of(number: int) -> torch.device:
    """The device of a number in a layout."""
    return torch.device("cpu") if number == HOST else torch.device("cuda", number)


def wrap(module: LossModel, group: Group, layout: Mapping[str, int]) -> ParallelModel:
    """`module`, its pieces on their devices; activations follow them.

    Args:
        module: holds the language model as `model`.
        layout: {name of a piece: number of its device}.
    """
    devices = {name: device_of(number) for name, number in layout.items()}
    place(causal_model(module.model), devices, group.device)
    return TorchModel(module, group)


def place(model: torch.nn.Module, devices: Mapping[str, torch.device], rest: torch.device) -> None:
    """Move each named module to its device, and make its inputs follow.

    Args:
        rest: where what is in none of them goes: the tables of positions.
    """
    placed = set()
    for name, device in devices.items():
        piece = model.get_submodule(name).to(device)
        piece.register_forward_pre_hook(partial(_bring, device), with_kwargs=True)
        placed |= set(piece.modules())
    for other in set(model.modules()) - placed:
        for name, buffer in other.named_buffers(recurse=False):
            setattr(other, name, buffer.to(rest))


def _bring(
    device: torch.device, piece: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    # each block's share of a cache lies where the block does
    kwargs = send_to_device(kwargs, device, skip_keys="past_key_values")
    return send_to_device(args, device), kwargs
