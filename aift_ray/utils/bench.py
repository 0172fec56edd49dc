"""Measures what a device reaches: products of matrices, its memory, the way to the host."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import psutil
import torch

from aift_ray.planning.measured_rates import Rates

# of square matrices; of the buffer that is copied, in bytes
_CUDA = (8192, 2**30)
_CPU = (1024, 2**28)
# the median of so many calls counts, after one that warms up
_CALLS = 7
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def measured(gpu: int | None) -> Rates:
    """The rates of a GPU, or of one thread of the CPU.

    Args:
        gpu: its number; None: the CPU.
    """
    device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        side, size = _CPU if gpu is None else _CUDA
        tflops = {name: _products(device, dtype, side) for name, dtype in _DTYPES.items()}
        bandwidth, host = _copies(device, size)
    finally:
        torch.set_num_threads(threads)
    if gpu is None:
        cpu = f"one thread of {os.cpu_count()} CPUs"
        return Rates(cpu, psutil.virtual_memory().total, tflops, bandwidth, None)
    name, memory = torch.cuda.get_device_name(gpu), torch.cuda.mem_get_info(gpu)[1]
    return Rates(name, memory, tflops, bandwidth, host)


def _products(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """1e12 operations a second."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: torch.mm(a, b), device) / 1e12


def _copies(device: torch.device, size: int) -> tuple[float, float | None]:
    """GB/s of the device's memory, read and written; and from pinned host memory to it."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    inside = 2 * size / _seconds(lambda: target.copy_(source), device) / 1e9
    if device.type == "cpu":
        return inside, None
    pinned = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    return inside, size / _seconds(lambda: target.copy_(pinned, non_blocking=True), device) / 1e9


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of several calls."""
    found = []
    for _ in range(_CALLS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])
