"""Private interfaces of bitsandbytes, read from bitsandbytes 0.50.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState


def unpacked(weight: torch.Tensor, quant_state: QuantState) -> torch.Tensor:
    """A 4-bit weight as it was before a CPU's kernels packed it.

    Missing: a layer unpacks its weight in the places alone where bitsandbytes saves it.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    found: torch.Tensor = _convert_weight_packed_for_cpu_inverse(weight, quant_state)[0]
    return found
