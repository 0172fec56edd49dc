"""Linear layers of a model that generates on a CPU, their weights laid out once for all tokens.

PyTorch has its libraries rearrange the weights of a linear layer at each call, which for the few
rows of a step of generation takes longer than the product. A layer with an adapter is computed by
two products instead of three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aift_ray.serving.engines.transformers.packed_weights import PackedLinear, gains

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Forward passes with weights in oneDNN's layout, as they are now; nothing elsewhere.

    The copies are of the width of the computation, and are dropped at the end.
    """
    device = next(model.parameters()).device
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        yield
        return
    narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    changed = []
    try:
        for module, forward in list(_faster(model, narrow)):
            module.forward = forward
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _faster(module: nn.Module, narrow: torch.dtype | None) -> Iterator[tuple[Any, Forward]]:
    """The layers inside `module`, and itself, that something computes faster."""
    forward = None
    if type(module) is nn.Linear and "forward" not in vars(module):
        forward = _linear(module, narrow)
    elif hasattr(module, "lora_A"):
        forward = _adapted(module, narrow)
    if forward is not None:
        yield module, forward
        return
    for child in module.children():
        yield from _faster(child, narrow)


def _linear(module: nn.Linear, narrow: torch.dtype | None) -> Forward | None:
    weight = module.weight.detach().to(narrow or module.weight.dtype)
    if not gains(weight):
        return None
    product = PackedLinear(weight, _as(module.bias, weight))
    return lambda states: product(states.to(weight.dtype))


def _adapted(module: LoraLayer, narrow: torch.dtype | None) -> Forward | None:
    """A layer with one ordinary adapter, whose first weights are in the product of its own."""
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
        return None
    names = module.active_adapters
    if len(names) != 1 or module.merged or module.disable_adapters or module.lora_variant:
        return None
    name, base = names[0], module.base_layer
    if name not in module.lora_A:
        return None
    first, second = module.lora_A[name], module.lora_B[name]
    if "forward" in vars(base) or first.bias is not None or second.bias is not None:
        return None
    kind = narrow or base.weight.dtype
    weight = torch.cat([base.weight.detach().to(kind), first.weight.detach().to(kind)])
    size = base.out_features
    bias = _as(base.bias, weight)
    if bias is not None:
        bias = nn.functional.pad(bias, (0, len(weight) - size))
    product: Forward = partial(nn.functional.linear, weight=weight, bias=bias)
    if gains(weight):
        product = PackedLinear(weight, bias)
    more = (second.weight.detach() * module.scaling[name]).to(kind).t()

    def forward(states: torch.Tensor) -> torch.Tensor:
        both = product(states.to(kind)).flatten(0, -2)
        made = torch.addmm(both[:, :size], both[:, size:], more)
        return made.view(*states.shape[:-1], size)

    return forward


def _as(bias: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor | None:
    return None if bias is None else bias.detach().to(weight.dtype)
