"""Liger's kernels on a GPU: they train what transformers' code trains, and move fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import parity
from tests.conftest import make_tiny_model
from tests.gpu.test_compile import trained
from tests.helpers import liger

Configure = Callable[..., Any]
pytestmark = [
    pytest.mark.skipif(not liger.INSTALLED, reason=liger.MISSING),
]
CASES = [
    (kind, method, precision)
    for kind in ("llama", "qwen3", "gemma3_text")
    for method in ("full", "lora", "qlora")
    for precision in ("fp32", "bf16", "fp16")
]


@pytest.mark.parametrize(("kind", "method", "precision"), CASES)
def test_fused_kernels_train_what_transformers_code_trains(
    kind: str, method: str, precision: str, configure: Configure, tmp_path: Path
) -> None:
    common = {
        "model": str(make_tiny_model(tmp_path / kind, kind)),
        "method": method,
        "training__precision": precision,
        "training__gradient_checkpointing": True,
        "training__batch_size": 4,
        "lora__lora_dropout": 0.0,
    }
    plain = trained(configure(**common), tmp_path)
    fused = trained(configure(**common, training__kernels="liger"), tmp_path)
    assert max(parity.differences(plain, fused)) < (1e-4 if precision == "fp32" else 2e-2)
