"""Private interfaces of PEFT, read from peft 0.21.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import Linear

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

Cast = Callable[[torch.Tensor, torch.dtype], torch.Tensor]


def cast_inputs_by(layer: Linear, cast: Cast) -> None:
    """Have a layer with adapters cast its inputs by `cast`.

    Missing: `cast_input_dtype_enabled` switches casting off for dropout and DoRA too.
    """
    replaced: Any = layer
    replaced._cast_input_dtype = cast


def disable_adapters(layer: BaseTunerLayer, disabled: bool) -> None:
    """Have a layer compute without its adapters, or with them.

    Missing: `enable_adapters` also changes which weights require gradients.
    """
    layer._disable_adapters = disabled
