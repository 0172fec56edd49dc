"""Which models compressed-tensors holds, and how many weights of a row share a scale in it."""

from __future__ import annotations

import importlib.util

import torch

from aift_ray.config.export_config import FITTED
from aift_ray.conversion import llmcompressor_compat
from aift_ray.models import hub, load
from aift_ray.models.wrappers import is_wrapper

FORMATS = (*FITTED, "fp8")
# weights that share a scale, the largest that divides every row
_GROUPS = (128, 64, 32)


def installed() -> bool:
    """Whether llm-compressor, which computes the formats, is."""
    return all(importlib.util.find_spec(name) for name in ("llmcompressor", "compressed_tensors"))


def unwritable(kind: str, location: str) -> str:
    """Why a model can't be written in a format; "": it can."""
    if is_wrapper(hub.load_config(location)):
        return "its language model alone would be written, and its towers be lost"
    if kind == "fp8":
        return ""
    skeleton = load.skeleton(location)
    if kind == "awq" and installed() and not llmcompressor_compat.has_mappings(skeleton):
        return f"llm-compressor has no mappings of AWQ for {type(skeleton).__name__}"
    if group_size(kind, location):
        return ""
    name, width = next(one for one in _widths(location).items() if one[1] % _GROUPS[-1])
    return f"rows of {name} have {width} weights, which groups of {_GROUPS[-1]} don't part"


def group_size(kind: str, location: str) -> int:
    """How many weights of a row share a scale; 0: each row has one, or can't be parted."""
    if kind == "fp8":
        return 0
    widths = _widths(location).values()
    return next((size for size in _GROUPS if not any(w % size for w in widths)), 0)


def _widths(location: str) -> dict[str, int]:
    """The length of the rows of each layer that is quantized."""
    skeleton = load.skeleton(location)
    head = skeleton.get_output_embeddings()
    return {
        name: module.in_features
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
