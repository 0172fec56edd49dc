"""What a GPU holds of a run, and how often a step waits for it: twins of tests on CPUs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import loop, step_batches
from aift_ray.engine.build import build
from aift_ray.engine.device_memory import device_memory_gb, peak_memory_gb
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
from aift_ray.serving.engines.transformers.kv_memory import token_bytes
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from tests.conftest import make_tiny_model
from tests.helpers.runs import stepped
from tests.serving.conftest import load
from tests.serving.engines.transformers.test_transformers_engine import (
    generated,
    ids,
    prompt,
    request,
    together,
)

Configure = Callable[..., Any]
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def wide(tmp_path: Path) -> str:
    """A model of which blocks are most, as of large ones."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 128}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 12}
    return str(make_tiny_model(tmp_path / "wide", **sizes, **heads))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_trial_holds_what_steps_hold_and_the_plan_is_near_it(
    method: str, wide: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(model=wide, method=method, training__gradient_checkpointing=True)
    prepared = prepare(config, tmp_path, 1, True, None)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    run = build(prepared.job, Group(0, 1, DEVICE))
    loop.trial(run)
    tried = torch.cuda.max_memory_allocated(DEVICE)
    stepped(run, 3)
    assert torch.cuda.max_memory_allocated(DEVICE) <= 1.02 * tried
    assert prepared.memory is not None
    assert prepared.memory.tensors == pytest.approx(tried, rel=0.15)
    reserved, held = device_memory_gb(DEVICE)
    assert peak_memory_gb(DEVICE) <= reserved <= held


@pytest.mark.parametrize(
    ("method", "further"),
    [
        ("full", {}),
        ("lora", {}),
        ("full", {"training__optimizer": "adamw_8bit"}),
        ("full", {"training__bf16_stochastic_round": True, "training__precision": "bf16"}),
    ],
)
def test_a_step_waits_for_the_device_once(
    method: str, further: dict[str, Any], wide: str, configure: Configure, tmp_path: Path
) -> None:
    steps = {"training__batch_size": 2, "training__gradient_accumulation_steps": 3}
    config = configure(model=wide, method=method, **steps, **further)
    run = build(prepare(config, tmp_path, 1, True, None).job, Group(0, 1, DEVICE))
    stepped(run, 1)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            stepped(run, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    said = [str(each.message) for each in waits if "synchroniz" in str(each.message)]
    assert len(said) <= 1


def test_the_next_batches_are_sent_beside_the_computation(
    wide: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"training__batch_size": 2, "training__gradient_accumulation_steps": 3}
    config = configure(model=wide, method="lora", **steps)
    job = prepare(config, tmp_path, 1, True, None).job
    run = build(job, Group(0, 1, DEVICE))
    found = stepped(run, 1)
    assert run.ahead is not None
    assert all(batch.input_ids.device == DEVICE for batch in run.ahead[1])
    found += stepped(run, 5)
    monkeypatch.setattr(step_batches, "computes_apart", lambda _: False)
    plain = stepped(build(job, Group(0, 1, DEVICE)), 6)
    assert [line["loss"] for line in found] == pytest.approx(
        [line["loss"] for line in plain], rel=1e-5
    )


def test_a_server_has_tokens_for_what_the_device_has_left() -> None:
    model = load().to(DEVICE)
    free = torch.cuda.mem_get_info(DEVICE)[0]
    engine = TransformersEngine(model, 4, 8)
    try:
        assert 0.5 * free < engine.budget * token_bytes(model) < free
        asked = [prompt(seed) for seed in range(4)]
        found = together(engine, [request(each) for each in asked])
        alone = load()
        assert [ids(each) for each in found] == [generated(alone, each) for each in asked]
    finally:
        engine.close()
