"""A GPU that is full: one message with the parts and what would fit, not a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import loop, run_errors
from aift_ray.engine.build import build
from aift_ray.errors import TrainingError
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
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
def leave() -> Iterator[Callable[[int], None]]:
    """Limits this process to so many bytes more than torch holds."""

    def limited(more: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        held = torch.cuda.memory_reserved(DEVICE) + more
        torch.cuda.set_per_process_memory_fraction(held / total, DEVICE)

    yield limited
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("when", ["built", "tried", "stepped"])
def test_memory_that_runs_out_is_one_message_with_a_remedy(
    when: str, configure: Configure, tmp_path: Path, leave: Callable[[int], None]
) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 128}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 4}
    model = make_tiny_model(tmp_path / "wide", **sizes, **heads)
    config = configure(model=str(model), training__batch_size=8)
    job = prepare(config, tmp_path, 1, True, None).job

    def train() -> None:
        group = Group(0, 1, DEVICE)
        with run_errors.told(job, group) as reached:
            reached.run = run = build(job, group)
            if when == "tried":
                leave(0)
            loop.trial(run)
            leave(0)
            stepped(run, 1)

    if when == "built":
        leave(0)
    with pytest.raises(TrainingError, match=r"not fit into the memory of cuda:0: .* GiB") as told:
        train()
    said = str(told.value)
    remedy = "--parallel.gpu_memory" if when == "built" else "try --training."
    assert remedy in said
    place = {"built": "building the model", "tried": "the longest micro-batch"}
    assert said.startswith(place.get(when, "step 1"))


def test_a_server_whose_device_is_full_after_all_answers_everybody(
    leave: Callable[[int], None],
) -> None:
    asked = [prompt(seed, 1500) for seed in range(8)]
    model = load().to(DEVICE)
    # far more than there will be: 8 requests take 48 MiB of keys and values, and are copied
    engine = TransformersEngine(model, 8, 8, 0, 2**30)
    leave(48 * 2**20)
    try:
        found = together(engine, [request(each, 24) for each in asked])
        assert engine._limit < engine.budget, "fewer are held at once for a while"
        assert engine.alive()
    finally:
        engine.close()
    alone = load()
    assert [ids(each) for each in found] == [generated(alone, each, 24) for each in asked]
