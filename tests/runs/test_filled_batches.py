"""With offload micro-batches are filled, where the user sets no limit; the steps stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.planning.candidates import Room
from aift_ray.planning.memory_estimate import GIB
from aift_ray.runs import memory_fit
from aift_ray.runs.prepare import Preparation, prepare
from tests.helpers.runs import curve

Configure = Callable[..., Any]
OFFLOAD = {"parallel__strategy": "fsdp", "parallel__offload": True}
ONE_BY_ONE = {"training__batch_size": 1, "training__gradient_accumulation_steps": 8}


@pytest.fixture
def planned(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Preparation]:
    """The preparation of a run on two GPUs, of which `card` bytes are known."""

    def planned(card: int | None = 24 * GIB, **values: Any) -> Preparation:
        monkeypatch.setattr(memory_fit, "_room", lambda *_: Room(card))
        config = configure(**{**ONE_BY_ONE, **OFFLOAD, **values})
        return prepare(config, tmp_path / "run", 2, True, None)

    return planned


def tokens_of(run: Preparation) -> int | None:
    found = run.job.config.data.tokens_per_micro_batch
    assert run.plan.tokens == found, "config.yaml, plan and workers read the same"
    return found


def test_offload_fills_micro_batches_and_keeps_the_steps(
    planned: Callable[..., Preparation],
) -> None:
    filled, whole = planned(), planned(data__tokens_per_micro_batch=None)
    assert (tokens_of(filled), tokens_of(whole)) == (4096, None)
    assert "data.tokens_per_micro_batch is 4096: with offload" in filled.job.why[-1]
    assert filled.plan.global_batch == whole.plan.global_batch == 16
    assert filled.steps == whole.steps
    for step in range(filled.steps):
        assert filled.plan.global_units(step) == whole.plan.global_units(step)
    assert len(filled.plan.share(0, 0, 2)) == 1 < len(whole.plan.share(0, 0, 2)) == 8
    assert filled.memory
    assert whole.memory
    assert filled.memory.activations > whole.memory.activations, "the plan counts what is filled"


def test_what_is_given_what_is_not_offloaded_and_what_is_full_stays(
    planned: Callable[..., Preparation],
) -> None:
    assert tokens_of(planned(data__tokens_per_micro_batch=150)) == 150
    assert tokens_of(planned(parallel__offload=False)) is None
    assert tokens_of(planned(card=None)) is None, "nobody knows what the card holds"
    # 16 of 24 rows make the step: 8 of each worker are already in one micro-batch
    assert (
        tokens_of(planned(training__batch_size=8, training__gradient_accumulation_steps=1)) is None
    )


def test_a_card_is_filled_as_far_as_it_holds(planned: Callable[..., Preparation]) -> None:
    needs = {tokens: planned(data__tokens_per_micro_batch=tokens).memory for tokens in (256, 512)}
    assert needs[256].total < needs[512].total
    found = planned(card=round(needs[256].total / 0.9) + 1)
    assert tokens_of(found) == 256
    assert found.memory == needs[256]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_filled_micro_batches_have_the_losses_of_unfilled_ones(
    method: str, planned: Callable[..., Preparation], configure: Configure, tmp_path: Path
) -> None:
    tokens = tokens_of(planned(method=method))
    how = {**ONE_BY_ONE, "method": method, "lora__lora_dropout": 0.0}
    whole = curve(configure(**how), tmp_path)
    filled = curve(configure(**how, data__tokens_per_micro_batch=tokens), tmp_path)
    assert len(whole) == len(filled) >= 3
    torch.testing.assert_close(torch.tensor(filled), torch.tensor(whole), rtol=1e-5, atol=1e-5)
