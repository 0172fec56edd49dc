"""The layout of a safetensors file: a table of the tensors, then their bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import torch

# floating point numbers, by their names in the table
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.uint8: "U8"}


def new_header(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file of `tensors`, in their order, and where in it each tensor begins.

    Args:
        dtype: of the file; None: as the tensors are.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, tensor in tensors.items():
        kept = dtype or tensor.dtype
        begins[name], end = end, end + tensor.numel() * kept.itemsize
        place = {"shape": list(tensor.shape), "data_offsets": [begins[name], end]}
        entries[name] = {"dtype": _NAMES[kept], **place}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    made = struct.pack("<Q", len(text)) + text
    return made, {name: len(made) + begin for name, begin in begins.items()}


def content(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> memoryview:
    """The bytes of a tensor in a file; `dtype`: that of the file, where it is another one."""
    flat = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous().flatten()
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
