"""Linear layers of a model that generates on a CPU, their weights laid out once for all tokens.

PyTorch has its libraries rearrange the weights of a linear layer at each call, which for the few
rows of a step of generation takes longer than the product. A layer with an adapter is computed by
two products instead of three, and layers that get the same input by those of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from aift_ray.serving.engines.transformers.packed_weights import PackedLinear, gains

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Forward = Callable[[torch.Tensor], torch.Tensor]
# children of a module that get the same input, one after the other
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


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
    names = {module: name for name, module in model.named_modules()}
    faster = {names[module]: (module, forward) for module, forward in _faster(model, narrow)}
    try:
        for name, (_, forward) in faster.items():
            model.set_submodule(name, FasterLayer(forward))
        yield
    finally:
        for name, (module, _) in faster.items():
            model.set_submodule(name, module)


class FasterLayer(nn.Module):
    """In place of a layer, without its weights."""

    def __init__(self, compute: Forward) -> None:
        super().__init__()
        self._compute = compute

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., features out) of (..., features in)."""
        return self._compute(states)


def _faster(module: nn.Module, narrow: torch.dtype | None) -> Iterator[tuple[Any, Forward]]:
    """The layers inside `module`, and itself, that something computes faster."""
    if type(module) is nn.Linear or hasattr(module, "lora_A"):
        layer = _layer(module, narrow)
        if layer and (layer.first is not None or gains(layer.weight)):
            yield module, _Product([layer]).alone
        return
    done = set()
    for names in _TOGETHER:
        each = [getattr(module, name, None) for name in names]
        layers = [_layer(one, narrow) for one in each]
        known = [layer for layer in layers if layer]
        if len(known) == len(names):
            done |= {id(one) for one in each}
            yield from zip(each, _Product(known).shared(), strict=True)
    for child in module.children():
        if id(child) not in done:
            yield from _faster(child, narrow)


class _Weights(NamedTuple):
    """The weights of a linear layer.

    Attributes:
        weight, bias: (features out, features in) and (features out,).
        first, second: of its adapter, (rank, features in) and (rank, features out), the second
            scaled; None: it has none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None


def _layer(module: Any, narrow: torch.dtype | None) -> _Weights | None:
    """A plain linear layer, or one with an ordinary adapter; None: another one."""
    if type(module) is nn.Linear and not isinstance(module.weight, DTensor):
        weight = module.weight.detach().to(narrow or module.weight.dtype)
        return _Weights(weight, _as(module.bias, weight))
    return _adapted(module, narrow) if hasattr(module, "lora_A") else None


def _adapted(module: LoraLayer, narrow: torch.dtype | None) -> _Weights | None:
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
    if isinstance(base.weight, DTensor) or first.bias is not None or second.bias is not None:
        return None
    weight = base.weight.detach().to(narrow or base.weight.dtype)
    more = (second.weight.detach() * module.scaling[name]).to(weight.dtype).t()
    return _Weights(weight, _as(base.bias, weight), first.weight.detach().to(weight.dtype), more)


class _Product:
    """What layers with one input compute, by one product, and one more for their adapters."""

    def __init__(self, layers: Sequence[_Weights]) -> None:
        firsts = [layer.first for layer in layers if layer.first is not None]
        weight = torch.cat([*(layer.weight for layer in layers), *firsts])
        self._sizes = [len(layer.weight) for layer in layers]
        self._size, self._kind = sum(self._sizes), weight.dtype
        bias = None
        if any(layer.bias is not None for layer in layers):
            each = [
                weight.new_zeros(len(la.weight)) if la.bias is None else la.bias for la in layers
            ]
            bias = torch.cat([*each, weight.new_zeros(len(weight) - self._size)])
        self._product: Forward
        if gains(weight):
            self._product = PackedLinear(weight, bias)
        else:
            # in fp32 small weights are faster transposed
            moved = weight.t().contiguous().t() if weight.dtype == torch.float32 else weight
            self._product = partial(nn.functional.linear, weight=moved, bias=bias)
        self._more = _beside_each_other(layers) if firsts else None
        self._states: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def alone(self, states: torch.Tensor) -> torch.Tensor:
        """The output of the only layer."""
        return self._computed(states)

    def shared(self) -> list[Forward]:
        """The outputs of each, which the first that is called computes for all."""
        return [partial(self._output, at) for at in range(len(self._sizes))]

    def _output(self, at: int, states: torch.Tensor) -> torch.Tensor:
        if states is not self._states or at not in self._outputs:
            self._outputs = dict(enumerate(self._computed(states).split(self._sizes, -1)))
        made = self._outputs.pop(at)
        self._states = states if self._outputs else None
        return made

    def _computed(self, states: torch.Tensor) -> torch.Tensor:
        made = self._product(states.to(self._kind)).flatten(0, -2)
        if self._more is not None:
            made = torch.addmm(made[:, : self._size], made[:, self._size :], self._more)
        return made.view(*states.shape[:-1], self._size)


def _beside_each_other(layers: Sequence[_Weights]) -> torch.Tensor:
    """The second weights of adapters, (ranks, features out of all layers)."""
    blocks = [
        layer.weight.new_zeros(0, len(layer.weight)) if layer.second is None else layer.second
        for layer in layers
    ]
    found: torch.Tensor = torch.block_diag(*blocks)
    return found


def _as(bias: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor | None:
    return None if bias is None else bias.detach().to(weight.dtype)
