"""vLLM on the GPU of a worker: what it computes after a sleep, and the memory it gives back."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.conftest import SHIPPED

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_vllm_sleeps_and_wakes_with_the_trained_weights(method: str, tmp_path: Path) -> None:
    from tests.grpo.vllm_sync import synced

    found = synced(tmp_path, torch.device("cuda", 0), model=str(SHIPPED), method=method)
    # 4 bits are quantized by vLLM itself
    assert found["difference"] < (0.1 if method == "qlora" else 1e-3)
    assert found["difference"] < found["stale"] / 4
    busy, resting = found["free"]
    assert resting > busy
