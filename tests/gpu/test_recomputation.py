"""Activations that are kept, or kept in host memory, on a GPU: the same numbers, other memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_optimizers import on_gpu
from tests.helpers.runs import stepped

Configure = Callable[..., Any]
RECOMPUTED = {
    "training__gradient_checkpointing": True,
    "training__batch_size": 4,
    "training__max_steps": 3,
    "lora__lora_dropout": 0.0,
}
KINDS = {
    "full": {},
    "selective": {"training__activation_checkpointing": "selective"},
    "offloaded": {"training__activation_offloading": True},
}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_what_is_kept_changes_no_number(method: str, configure: Configure, tmp_path: Path) -> None:
    found = {}
    for kind, more in KINDS.items():
        run = on_gpu(configure(**RECOMPUTED, **more, method=method), tmp_path)
        found[kind] = torch.tensor([(x["loss"], x["grad_norm"]) for x in stepped(run)])
    # GPUs add in no fixed order
    for kind in ("selective", "offloaded"):
        torch.testing.assert_close(found[kind], found["full"], rtol=1e-4, atol=1e-4)


def test_offloaded_activations_take_less_of_the_card(configure: Configure, tmp_path: Path) -> None:
    from tests.conftest import SHIPPED

    peaks = {}
    for kind in ("offloaded", "full", "selective"):
        gc.collect()
        torch.cuda.empty_cache()
        config = configure(**RECOMPUTED, **KINDS[kind], method="lora", model=str(SHIPPED))
        run = on_gpu(config, tmp_path)
        torch.cuda.reset_peak_memory_stats()
        stepped(run, 1)
        peaks[kind] = torch.cuda.max_memory_allocated()
        del run
    assert peaks["offloaded"] < peaks["full"] < peaks["selective"]
