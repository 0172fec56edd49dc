"""Weights of linear layers in the layout that a CPU multiplies fastest, for a model that is served.

A step multiplies a few rows, and PyTorch's own layout, (features out, features in), makes its
libraries rearrange the weights each time. oneDNN rearranges them once; small ones in fp32, which
stay in a cache, are faster transposed. What is computed is the same but for the order of sums.
Measured in docs/decisions/0007-serving-engine.md.
"""

from __future__ import annotations

import psutil
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from aift_ray.serving.engines.transformers import mkldnn_compat
from aift_ray.utils import malloc_trim

# elements from which oneDNN's layout is faster than the transposed one, in fp32
_LARGE = 2**18
# rows that oneDNN is told to expect
_ROWS = 8
# rows that it multiplies as fast as one
_FEWEST = 4
# of the free memory
_SHARE = 0.25


def pack(model: PreTrainedModel) -> None:
    """Rearrange the weights of a model's linear layers; nothing where that would gain nothing.

    An output layer whose weights are the embeddings' is packed beside them, where that takes no
    more than a quarter of what memory is free.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    shared = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for name, module in list(model.named_modules()):
        # others compute in ways of their own
        if type(module) is not nn.Linear:
            continue
        tied = id(module.weight) in shared
        if tied and module.weight.nbytes > psutil.virtual_memory().available * _SHARE:
            continue
        if gains(module.weight):
            packed = PackedLinear(module.weight.detach(), module.bias)
            if tied:
                packed.weight = module.weight
            model.set_submodule(name, packed)
        elif module.weight.dtype == torch.float32 and not tied:
            module.weight.data = module.weight.data.t().contiguous().t()
    malloc_trim.trim()


def gains(weight: torch.Tensor) -> bool:
    """Whether a linear layer is faster with its weights in oneDNN's layout."""
    if weight.dtype == torch.bfloat16:
        return mkldnn_compat.takes_bfloat16()
    return weight.dtype == torch.float32 and weight.numel() >= _LARGE


class PackedLinear(nn.Linear):
    """A linear layer with its weights in oneDNN's layout.

    Its `weight` holds NaN of the right shape in no memory.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        nothing = weight.new_full((1, 1), torch.nan).expand_as(weight)
        self.weight = nn.Parameter(nothing, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)
        self._packed = mkldnn_compat.reordered(weight, _ROWS)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., features out) of (..., features in)."""
        rows = states.numel() // states.shape[-1]
        if rows >= _FEWEST:
            return self._product(states)
        flat = states.reshape(rows, -1)
        made = self._product(pad(flat, (0, 0, 0, _FEWEST - rows)))
        return made[:rows].view(*states.shape[:-1], made.shape[-1])

    def _product(self, states: torch.Tensor) -> torch.Tensor:
        return mkldnn_compat.linear(states, self._packed, self.bias)
