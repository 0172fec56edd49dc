"""The GPU functions on machines with no GPU, one, several, and Apple's.

No test here touches a GPU: the calls into CUDA and MPS are replaced. tests/gpu has the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aift_ray.errors import ConfigError
from aift_ray.utils.gpu_utils import (
    clear_gpu_memory,
    get_available_device,
    get_gpu_memory_info,
    optimize_model_for_gpu,
    set_memory_fraction,
    usable_device,
)

GIB = 2**30


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def replaced_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, Any]]]:
    """Makes torch.cuda speak of cards of 24 GiB; returns what is asked of it."""

    def install(cards: int, bf16: bool = True) -> list[tuple[str, Any]]:
        calls: list[tuple[str, Any]] = []

        def note(name: str) -> Callable[..., None]:
            return lambda *values: calls.append((name, values))

        properties = SimpleNamespace(name="RTX A5000", multi_processor_count=64)
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: cards,
            "is_bf16_supported": lambda: bf16,
            "get_device_properties": lambda index: properties,
            "mem_get_info": lambda index: ((20 - index) * GIB, 24 * GIB),
            "memory_allocated": lambda index: GIB,
            "empty_cache": note("empty_cache"),
            "set_per_process_memory_fraction": note("fraction"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return calls

    return install


@pytest.fixture
def replaced_mps(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> list[tuple[str, Any]]:
    """Makes torch.mps speak of a chip with 16 GiB; holds what is asked of it."""
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "get_core_count", lambda: 10)
    for name, value in {
        "recommended_max_memory": lambda: 16 * GIB,
        "current_allocated_memory": lambda: 2 * GIB,
        "driver_allocated_memory": lambda: 3 * GIB,
        "empty_cache": lambda: calls.append(("empty_cache", ())),
        "set_per_process_memory_fraction": lambda f: calls.append(("fraction", (f,))),
    }.items():
        monkeypatch.setattr(torch.mps, name, value)
    return calls


class Moved(torch.nn.Linear):
    """Tells where it was sent, for devices that are not there."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[torch.device] = []

    def to(self, device: torch.device) -> Moved:  # type: ignore[override]
        self.sent.append(device)
        return self


def test_without_a_gpu_every_function_works_and_changes_nothing(no_gpu: None) -> None:
    assert get_available_device() == torch.device("cpu")
    assert get_gpu_memory_info() == {"available": False, "device_count": 0, "devices": []}
    model = Moved()
    forward = model.forward
    assert optimize_model_for_gpu(model, gradient_checkpointing=True) == (
        model,
        torch.device("cpu"),
    )
    assert model.sent == []
    assert model.forward == forward
    clear_gpu_memory()
    set_memory_fraction()


@pytest.mark.parametrize("cards", [1, 2])
def test_each_card_is_told_with_what_the_driver_reports(
    replaced_cuda: Callable[..., Any], cards: int
) -> None:
    replaced_cuda(cards)
    info = get_gpu_memory_info()
    assert (info["available"], info["device_count"], len(info["devices"])) == (True, cards, cards)
    assert info["devices"][-1] == {
        "index": cards - 1,
        "name": "RTX A5000",
        "total_memory_gb": 24,
        "allocated_memory_gb": 1,
        "free_memory_gb": 21 - cards,
        "multi_processor_count": 64,
    }


def test_memory_is_limited_and_cleared_on_every_card(replaced_cuda: Callable[..., Any]) -> None:
    calls = replaced_cuda(2)
    set_memory_fraction(0.5)
    clear_gpu_memory()
    assert calls == [("fraction", (0.5, 0)), ("fraction", (0.5, 1)), ("empty_cache", ())]


def test_apples_gpu_is_one_device(replaced_mps: list[tuple[str, Any]]) -> None:
    assert get_available_device() == torch.device("mps")
    (device,) = get_gpu_memory_info()["devices"]
    assert (device["total_memory_gb"], device["allocated_memory_gb"]) == (16, 2)
    assert (device["free_memory_gb"], device["multi_processor_count"]) == (13, 10)
    clear_gpu_memory()
    set_memory_fraction(0.7)
    assert replaced_mps == [("empty_cache", ()), ("fraction", (0.7,))]


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_model_on_a_gpu_computes_in_what_the_card_has(
    replaced_cuda: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, bf16: bool, dtype: Any
) -> None:
    replaced_cuda(1, bf16)
    asked = []

    def replaced_autocast(kind: str, dtype: torch.dtype) -> Callable[[Any], Any]:
        asked.append((kind, dtype))
        return lambda forward: forward

    monkeypatch.setattr(torch, "autocast", replaced_autocast)
    model = Moved()
    for _ in range(2):
        assert optimize_model_for_gpu(model)[1] == torch.device("cuda")
    assert model.sent == [torch.device("cuda")] * 2
    assert asked == [("cuda", dtype)], "the second call wrapped it again"


def test_mixed_precision_is_off_when_not_wanted(replaced_cuda: Callable[..., Any]) -> None:
    replaced_cuda(1)
    model = Moved()
    forward = model.forward
    optimize_model_for_gpu(model, torch.device("cuda:0"), enable_mixed_precision=False)
    assert model.forward == forward


def test_a_model_without_checkpointing_is_refused(replaced_cuda: Callable[..., Any]) -> None:
    replaced_cuda(1)
    with pytest.raises(ConfigError, match="Moved has none"):
        optimize_model_for_gpu(Moved(), gradient_checkpointing=True)


@pytest.mark.parametrize("device", ["cuda", "mps", "tpu", "gpu:0", 3.5, "cuda:0"])
def test_a_device_that_is_not_there_is_refused(no_gpu: None, device: Any) -> None:
    with pytest.raises(ConfigError, match=r"there is no .* here\n.*use cpu"):
        optimize_model_for_gpu(torch.nn.Linear(1, 1), device)


def test_a_card_beyond_the_last_is_refused(replaced_cuda: Callable[..., Any]) -> None:
    replaced_cuda(2)
    assert usable_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="use cuda:0, cuda:1, cpu"):
        usable_device("cuda:2")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, "half", True, float("nan")])
def test_a_fraction_out_of_range_is_refused(no_gpu: None, fraction: Any) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        set_memory_fraction(fraction)
