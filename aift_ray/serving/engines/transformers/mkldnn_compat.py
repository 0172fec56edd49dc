"""Private operators of torch for linear layers in oneDNN's layout, read from torch 2.13.0.

Missing: `torch.utils.mkldnn.to_mkldnn` takes and gives tensors of the layout "mkldnn", which the
layers around a linear one do not compute with.
"""

from __future__ import annotations

import torch


def takes_bfloat16() -> bool:
    """Whether the processor multiplies in bf16 by oneDNN."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def reordered(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """(features out, features in) in the layout that is fastest for so many rows."""
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return found


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., features out) of (..., features in) and a weight of `reordered`."""
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return made
