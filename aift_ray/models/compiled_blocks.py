"""Decoder blocks compiled by torch.compile, each by itself: one compilation serves all alike.

What surrounds a block stays as it is: gathering its weights, recomputing its activations, and its
name in saved files.
"""

from __future__ import annotations

import inspect
from functools import partial, wraps
from types import MethodType
from typing import Any

import torch

from aift_ray.models.decoder import decoder_blocks
from aift_ray.models.transformers_compat import recomputed
from aift_ray.utils.forward_compat import replace_forward

# who makes code of the graphs
BACKEND: Any = "inductor"


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile the training forward of each decoder block of `model`, in place.

    Rows of any number of tokens share one compilation. Evaluation and generation, which have other
    shapes with every token, run uncompiled.
    """
    for block in decoder_blocks(model):
        _compile(block)


def _compile(block: torch.nn.Module) -> None:
    # beneath transformers' recomputation of activations, which can't be compiled with what is in it
    # not by the module's `compile`: hooks would be in the graph, and evaluation compiled as well
    inner = inspect.unwrap(type(block).forward)
    fast = torch.compile(MethodType(inner, block), dynamic=True, backend=BACKEND)
    plain = block.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return plain(*args, **kwargs)
        if getattr(block, "gradient_checkpointing", False):
            return recomputed(block, partial(fast, **kwargs), *args)
        return fast(*args, **kwargs)

    replace_forward(block, forward)
