"""The GPU functions on a real GPU."""

from __future__ import annotations

import pytest
import torch

from aift_ray.utils.drivers import usable_gpus
from aift_ray.utils.gpu_exchange import exchange
from aift_ray.utils.gpu_utils import (
    clear_gpu_memory,
    get_available_device,
    get_gpu_memory_info,
    optimize_model_for_gpu,
    set_memory_fraction,
)


def test_the_device_is_cuda_and_its_memory_adds_up() -> None:
    assert get_available_device() == torch.device("cuda")
    info = get_gpu_memory_info()
    assert info["device_count"] == torch.cuda.device_count()
    for device in info["devices"]:
        assert 0 < device["free_memory_gb"] <= device["total_memory_gb"]
        assert device["multi_processor_count"] > 0


def test_the_driver_is_fit_and_all_gpus_exchange_data() -> None:
    count = usable_gpus()
    assert count == torch.cuda.device_count()
    assert exchange(count, 60.0) == ""


def test_cleared_memory_is_free_for_others() -> None:
    def free() -> float:
        return float(get_gpu_memory_info()["devices"][0]["free_memory_gb"])

    block = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    held = free()
    del block
    clear_gpu_memory()
    assert free() - held == pytest.approx(1, abs=0.1)


def test_a_model_moves_and_computes_in_16_bits() -> None:
    model, device = optimize_model_for_gpu(torch.nn.Linear(8, 8))
    assert device.type == "cuda"
    assert model.weight.is_cuda
    assert model.weight.dtype is torch.float32
    assert model(torch.ones(1, 8, device=device)).dtype in (torch.bfloat16, torch.float16)


def test_more_than_the_fraction_is_refused() -> None:
    set_memory_fraction(0.1)
    total = get_gpu_memory_info()["devices"][0]["total_memory_gb"]
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(total * 0.2 * 2**30), dtype=torch.uint8, device="cuda")
    finally:
        set_memory_fraction(1.0)
