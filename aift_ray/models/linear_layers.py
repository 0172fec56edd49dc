"""Linear maps: the layers that adapters go on and that are held in fewer bits, of any class."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

# classes that compute x W^T + b as nn.Linear does, by a `forward` of their own
_ALIKE = ("FalconLinear", "Linear4bit", "Linear8bitLt")


def features(module: torch.nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map; None for any other module.

    A subclass of nn.Linear that computes something else, such as a router that gives chosen
    experts, is none: an adapter on it could not be added to what it gives.
    """
    if isinstance(module, Conv1D):
        # one matrix, (in, out)
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if not isinstance(module, torch.nn.Linear):
        return None
    kind = type(module)
    if kind.forward is not torch.nn.Linear.forward and kind.__name__ not in _ALIKE:
        return None
    return module.in_features, module.out_features


def is_transposed(module: torch.nn.Module) -> bool:
    """Whether a linear map is published as a matrix (in, out), however it is held here."""
    # transformers' mark on a layer that bitsandbytes holds; its matrix is (out, in) again
    source: Any = getattr(module, "source_cls", type(module))
    return issubclass(source, Conv1D)


def can_be_held_in_fewer_bits(module: torch.nn.Module) -> bool:
    """Whether transformers has bitsandbytes hold a linear map: it takes two classes alone."""
    return isinstance(module, Conv1D) or type(module) is torch.nn.Linear
