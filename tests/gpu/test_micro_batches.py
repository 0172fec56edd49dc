"""Micro-batches by tokens, and rows longer than a model's context, on a GPU: a CPU's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.planning.measured_rates import keep
from aift_ray.runs import run_dir
from aift_ray.utils import bench
from tests.gpu.test_optimizers import on_gpu, whole
from tests.helpers.runs import started, stepped
from tests.models.test_scaled_rope import short

Configure = Callable[..., Any]
ONE_STEP = {
    "training__batch_size": 2,
    "training__gradient_accumulation_steps": 4,
    "training__precision": "fp32",
}


def numbers(run: Any) -> torch.Tensor:
    """Loss and gradient norm of each step."""
    return torch.tensor([(line["loss"], line["grad_norm"]) for line in stepped(run, 3)])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_micro_batches_by_tokens_train_what_those_by_rows_do(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    how = {**ONE_STEP, "method": method, "lora__lora_dropout": 0.0}
    rows = on_gpu(configure(**how), tmp_path)
    filled = on_gpu(configure(**how, data__tokens_per_micro_batch=300), tmp_path)
    assert len(filled.plan.share(0, 0, 1)) < len(rows.plan.share(0, 0, 1)), "fewer and larger"
    torch.testing.assert_close(numbers(filled), numbers(rows), rtol=1e-4, atol=1e-4)


def test_a_scaled_model_trains_on_a_gpu_as_on_a_cpu(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        model=str(short(tmp_path / "model")),
        rope_scaling="yarn:4",
        data__sequence_length=130,
        **ONE_STEP,
    )
    wanted = numbers(started(config, tmp_path))
    torch.testing.assert_close(numbers(on_gpu(config, tmp_path)), wanted, rtol=1e-3, atol=1e-3)


def test_a_run_tells_the_speed_that_was_computed_of_this_gpu(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep(bench.measured(0))
    whole(configure(training__max_steps=2), tmp_path / "run")
    assert run_dir.summary(tmp_path / "run")["estimated_tokens_per_second"] > 0
