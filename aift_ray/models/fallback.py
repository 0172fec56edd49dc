"""Which models can stand in for one that does not load, and how much memory they may take."""

from __future__ import annotations

import psutil
import torch

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG, Entry, find
from aift_ray.models.load import weight_bytes
from aift_ray.planning.model_shape import Shape
from aift_ray.utils.gpu_utils import get_gpu_memory_info

_GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that is free now, in bytes."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    free = get_gpu_memory_info()["devices"][device.index or 0]["free_memory_gb"]
    return int(free * _GIB)


def check_memory(location: str, dtype: torch.dtype, bits: int | None, device: torch.device) -> None:
    """Refuse weights that can't fit: a CPU's system would end the process without a word.

    Raises:
        ModelError: the weights alone are larger than the memory that is free.
    """
    need, free = weight_bytes(location, dtype, bits), free_bytes(device)
    if need > free:
        what = f"out of memory: its weights need {need / _GIB:.1f} GiB, "
        what += f"and {free / _GIB:.1f} GiB are free on {device}"
        remedy = "load it with load_in_4bit=True, or choose a smaller model"
        raise ModelError([Problem(f"model {location}", what, remedy)])


def smaller_models(name: str, width: int, bits: int | None, free: int) -> list[str]:
    """The catalog's models below `name`, largest first, whose weights fit.

    Args:
        name: of any model; of one that is not in the catalog, all count as smaller.
        width, bits: how weights are held, as in `Shape.weight_bytes`.
        free: bytes that they may take.
    """
    entry = find(name)
    sizes = {
        other: found.architecture.parameters
        for other, found in CATALOG.items()
        if entry is None or found.architecture.parameters < entry.architecture.parameters
    }
    fitting = [other for other in sizes if _weight_bytes(CATALOG[other], width, bits) <= free]
    return sorted(fitting, key=lambda other: -sizes[other])


def _weight_bytes(entry: Entry, width: int, bits: int | None) -> int:
    """Bytes of a catalogued model's weights; too many rather than too few."""
    shape, parameters = Shape.of(entry.config), entry.architecture.parameters
    if abs(shape.parameters - parameters) < parameters // 100:
        return shape.weight_bytes(width, bits)
    # a network whose linear layers the arithmetic does not know: none counts as quantized
    return parameters * width
