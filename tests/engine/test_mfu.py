"""Model FLOPs utilization: operations of the rows of a step against what the GPUs can do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from aift_ray.engine.mfu import Utilization
from aift_ray.engine.worker_run import Run

LINE = {"tokens": 60, "tokens_per_second": 30.0, "supervised_tokens": 7}


class Flops:
    """A thousand billion operations a token, and a billion a label."""

    def step(self, lengths: Any, labels: int) -> float:
        return float(lengths.sum()) * 1e12 + labels * 1e9


def run(device: str = "cuda", compute: torch.dtype = torch.bfloat16) -> Run:
    """A run of two workers with one GPU each, whose steps have rows 0 and 2."""
    made = SimpleNamespace(
        job=SimpleNamespace(flops=Flops()),
        plan=SimpleNamespace(share=lambda step, first, of: [[0], [2]]),
        rows=SimpleNamespace(lengths=np.array([10, 20, 50])),
        group=SimpleNamespace(device=torch.device(device), world_size=2),
        precision=SimpleNamespace(compute=compute),
        config=SimpleNamespace(parallel=SimpleNamespace(gpus_a_worker=1)),
    )
    return cast(Run, made)


def test_a_step_counts_its_rows_and_a_run_all_steps_but_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    found = Utilization(run())
    done, most = 60e12 + 7e9, 2 * 312e12
    assert found.of({"step": 1, **LINE}) == {"mfu": pytest.approx(done / 2.0 / most)}
    assert found.mean() is None
    found.of({"step": 2, **LINE})
    found.of({"step": 3, **LINE, "tokens_per_second": 15.0})
    assert found.mean() == pytest.approx(2 * done / (2.0 + 4.0) / most)


@pytest.mark.parametrize(
    ("name", "device", "compute"),
    [
        ("NVIDIA A100-SXM4-80GB", "cpu", torch.bfloat16),
        ("NVIDIA A100-SXM4-80GB", "cuda", torch.float32),
        ("a card that nobody knows", "cuda", torch.bfloat16),
    ],
)
def test_where_the_peak_is_not_known_nothing_is_said(
    name: str, device: str, compute: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = Utilization(run(device, compute))
    assert found.of({"step": 2, **LINE}) == {}
    assert found.mean() is None
