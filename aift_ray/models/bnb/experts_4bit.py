"""The experts of a mixture held in 4 bits by bitsandbytes, which knows linear layers only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from aift_ray.models.bnb import shards_4bit
from aift_ray.models.families.experts import expert_parameters

# weights that share a scale, of 4 bits
BLOCK = 64
# name under which transformers finds the quantizer of linear layers and experts
METHOD = "bitsandbytes_4bit_experts"
# child module of the experts that holds their weights in 4 bits
_PACKED = "packed"
# attribute of a freshly quantized parameter
STATE = "expert_quant_state"
# and another: its rows before a shard was taken
WHOLE = "whole_rows"


class Packed4bitExperts(nn.Module):
    """Weights of a block's experts in 4 bits, dequantized for as long as the block needs them.

    bitsandbytes' own `replace_parameter_4bit` makes a parametrization of each. PEFT would number
    the adapters of those in another order than those of plain weights, and torch's cache of
    parametrizations would hide an adapter from its experts.

    Attributes:
        states: bitsandbytes' scales of each weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, Any] = {}
        self._entered = 0

    def put(self, name: str, data: torch.Tensor, state: object) -> None:
        """Add a weight: two in each byte of `data`."""
        # PEFT looks for adapters' targets by the end of a name
        self.register_parameter(f"{name}_4bit", nn.Parameter(data, requires_grad=False))
        self.states[name] = state

    def data(self, name: str) -> torch.Tensor:
        """What is held of a weight."""
        return self.get_parameter(f"{name}_4bit").detach()

    def _apply(self, fn: object, recurse: bool = True) -> Packed4bitExperts:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, state in self.states.items():
            # the scales keep their dtype
            state.to(self.data(name).device)
        return self

    def enter(self, experts: nn.Module) -> None:
        """Give `experts` their weights in the dtype that they had before quantization."""
        from bitsandbytes.functional import dequantize_4bit

        self._entered += 1
        if self._entered > 1:
            return
        for name, state in self.states.items():
            weight = dequantize_4bit(self.data(name), state)
            experts.register_parameter(name, nn.Parameter(weight, requires_grad=False))

    def leave(self, experts: nn.Module) -> None:
        """Take them away again, when the last who has entered leaves."""
        self._entered -= 1
        if not self._entered:
            for name in self.states:
                delattr(experts, name)

    def stand_ins(self) -> dict[str, nn.Parameter]:
        """Parameters of the same shapes, dtypes and device that take no memory."""
        found = {}
        for name, state in self.states.items():
            one = torch.zeros((), dtype=state.dtype, device=self.data(name).device)
            found[name] = nn.Parameter(one.expand(state.shape), requires_grad=False)
        return found


def _packed_of(experts: nn.Module) -> Packed4bitExperts | None:
    found = getattr(experts, _PACKED, None)
    return found if isinstance(found, Packed4bitExperts) else None


def pack(model: nn.Module, kind: str, double: bool) -> None:
    """Hold the experts of a loaded model in 4 bits, those that are not yet quantized one by one.

    Args:
        kind: nf4 or fp4.
        double: whether the scales are quantized too.
    """
    for name in expert_parameters(model):
        data, state = quantized(model.get_parameter(name).data, kind, double)
        owner, own = name.rsplit(".", 1)
        _hold(model.get_submodule(owner), own, data, state)
    for module in list(model.modules()):
        for own, parameter in list(module.named_parameters(recurse=False)):
            if hasattr(parameter, STATE):
                _hold(module, own, parameter.data, getattr(parameter, STATE))
                rows = getattr(parameter, WHOLE)
                if rows != len(parameter):
                    shards_4bit.note(module.get_submodule(_PACKED), f"{own}_4bit", rows)


def quantized(weight: torch.Tensor, kind: str, double: bool) -> tuple[torch.Tensor, Any]:
    """`weight` in 4 bits, (bytes, 1), and its scales, by bitsandbytes.

    Args:
        kind: nf4 or fp4.
        double: the scales are quantized too.
    """
    import bitsandbytes.functional

    functional: Any = bitsandbytes.functional
    found: tuple[torch.Tensor, Any] = functional.quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=double, quant_type=kind
    )
    return found


def _hold(experts: nn.Module, name: str, data: torch.Tensor, state: object) -> None:
    packed = _packed_of(experts)
    if packed is None:
        packed = Packed4bitExperts()
        experts.add_module(_PACKED, packed)
        _unpacked_while_called(experts)
    delattr(experts, name)
    packed.put(name, data, state)


def _unpacked_while_called(module: nn.Module) -> None:
    module.register_forward_pre_hook(_enter)
    # recomputation stops a block by an exception, in the midst of its experts
    module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, *_: object) -> None:
    experts = _experts_in(module)
    experts.get_submodule(_PACKED).enter(experts)  # type: ignore[operator]


def _leave(module: nn.Module, *_: object) -> None:
    experts = _experts_in(module)
    experts.get_submodule(_PACKED).leave(experts)  # type: ignore[operator]


def _experts_in(module: nn.Module) -> nn.Module:
    # one of PEFT's around them, or the experts themselves
    inner: nn.Module = getattr(module, "get_base_layer", lambda: module)()
    return inner


@contextmanager
def adaptable(model: nn.Module) -> Iterator[None]:
    """A time in which PEFT may put adapters on experts in 4 bits, as on any others."""
    from peft.tuners.lora import ParamWrapper

    held = [(m, packed) for m in model.modules() if (packed := _packed_of(m)) is not None]
    for experts, packed in held:
        # in the order in which the model has them: PEFT numbers adapters by it
        for name, stand_in in packed.stand_ins().items():
            experts.register_parameter(name, stand_in)
    try:
        yield
    finally:
        for experts, packed in held:
            for name in packed.states:
                delattr(experts, name)
    for module in list(model.modules()):
        # its delta is added before the experts are called
        if isinstance(module, ParamWrapper) and _packed_of(module.get_base_layer()):
            _unpacked_while_called(module)


class ExpertsConfig(BitsAndBytesConfig):
    """bitsandbytes' 4 bits for linear layers and experts."""

    def __init__(self, **values: object) -> None:
        super().__init__(**values)  # type: ignore[no-untyped-call]
        self.quant_method = METHOD  # type: ignore[assignment]
        # makes the quantizer known to transformers; bitsandbytes takes two seconds to import
        from aift_ray.models.bnb import experts_quantizer  # noqa: F401
