"""The device at hand, its memory, and a model made ready for it.

On a machine without a GPU every function works and changes nothing. Memory is in GiB.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn

from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.forward_compat import is_replaced, replace_forward

_GIB = 2**30


def get_available_device() -> torch.device:
    """The device to compute on: CUDA, else MPS (Apple), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def usable_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for; None: the best at hand.

    Raises:
        ConfigError: there is no such device; names those that are there.
    """
    if device is None:
        return get_available_device()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError([_no_device(device)]) from None
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (found.index or 0) >= there.get(found.type, 0):
        raise ConfigError([_no_device(device)])
    return found


def _no_device(device: object) -> Problem:
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names += ["mps"] * torch.backends.mps.is_available()
    return Problem("device", f"there is no {device!r} here", f"use {', '.join([*names, 'cpu'])}")


def get_gpu_memory_info() -> dict[str, Any]:
    """The GPUs and their memory in GiB.

    Returns:
        {"available": bool, "device_count": int, "devices": [{"index", "name", "total_memory_gb",
        "allocated_memory_gb", "free_memory_gb", "multi_processor_count"}]}. "allocated" is what
        this process holds in tensors; "free" is what the driver reports, other processes
        included, and on MPS what is left of the recommended maximum.
    """
    if torch.cuda.is_available():
        devices = [_cuda_device(index) for index in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        devices = [_mps_device()]
    else:
        devices = []
    return {"available": bool(devices), "device_count": len(devices), "devices": devices}


def _cuda_device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "index": index,
        "name": properties.name,
        "total_memory_gb": total / _GIB,
        "allocated_memory_gb": torch.cuda.memory_allocated(index) / _GIB,
        "free_memory_gb": free / _GIB,
        "multi_processor_count": properties.multi_processor_count,
    }


def _mps_device() -> dict[str, Any]:
    total = torch.mps.recommended_max_memory()
    return {
        "index": 0,
        "name": "Apple GPU (MPS)",
        "total_memory_gb": total / _GIB,
        "allocated_memory_gb": torch.mps.current_allocated_memory() / _GIB,
        "free_memory_gb": max(total - torch.mps.driver_allocated_memory(), 0) / _GIB,
        "multi_processor_count": torch.backends.mps.get_core_count(),
    }


def half_precision(device: torch.device) -> torch.dtype:
    """The 16-bit floating point that `device` computes in: bfloat16 where it has it."""
    if device.type == "mps" or (device.type == "cuda" and not torch.cuda.is_bf16_supported()):
        return torch.float16
    return torch.bfloat16


def optimize_model_for_gpu(
    model: nn.Module,
    device: torch.device | None = None,
    enable_mixed_precision: bool = True,
    gradient_checkpointing: bool = False,
) -> tuple[nn.Module, torch.device]:
    """Put `model` on a GPU; on a CPU it stays as it is.

    Args:
        device: None: the best at hand.
        enable_mixed_precision: `forward` computes in 16 bits (autocast); weights keep their dtype.
        gradient_checkpointing: activations are recomputed in the backward pass, which takes less
            memory and more time.

    Returns:
        The same model, and the device it is on.

    Raises:
        ConfigError: there is no such device, or the model has no gradient checkpointing.
    """
    device = usable_device(device)
    if device.type == "cpu":
        return model, device
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    # bitsandbytes has placed quantized weights when it loaded them
    if not getattr(model, "is_quantized", False):
        model = model.to(device)
    if enable_mixed_precision and not is_replaced(model):
        cast = torch.autocast(device.type, dtype=half_precision(device))
        replace_forward(model, cast(model.forward))
    return model, device


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute the activations of `model` in the backward pass.

    Raises:
        ConfigError: it has no gradient checkpointing.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    # the transformers that vLLM needs has the older name alone
    enable = enable or getattr(model, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        what = f"{type(model).__name__} has none"
        raise ConfigError([Problem("gradient_checkpointing", what, "leave it off")])
    enable({"use_reentrant": False})


def clear_gpu_memory() -> None:
    """Give memory that no tensor uses any more back to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def set_memory_fraction(fraction: float = 0.9) -> None:
    """Let this process take at most this share of each GPU's memory.

    Raises:
        ConfigError: the fraction is not above 0 and at most 1.
    """
    number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if not number or not 0 < fraction <= 1:
        what = f"{fraction!r} is not allowed: give a number above 0 and at most 1"
        raise ConfigError([Problem("fraction", what)])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(fraction, index)
    elif torch.backends.mps.is_available():
        torch.mps.set_per_process_memory_fraction(fraction)
