"""The next step's micro-batches are made while a device computes, and are what they would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import loop, step_batches
from aift_ray.engine.checkpoint.writer import snapshot
from tests.helpers.preference_rows import pairs, write
from tests.helpers.runs import started, stepped

Configure = Callable[..., Any]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "training__neftune_noise_alpha": 5.0},
    "full, filled rows": {"method": "full", "data__packing": "fill", "data__sequence_length": 128},
    "dpo": {"method": "lora", "objective": "dpo"},
}


def prepared(case: str, configure: Configure, folder: Path) -> Any:
    """A run of several micro-steps, over more than an epoch."""
    steps: dict[str, Any] = {"training__batch_size": 4, "training__max_steps": 6}
    steps["training__gradient_accumulation_steps"] = 3
    if case == "dpo":
        steps["data__train_files"] = [str(write(folder / "pairs.jsonl", pairs(8)))]
    return started(configure(**CASES[case], **steps), folder)


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_same_with_batches_made_ahead(
    case: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepared(case, configure, tmp_path)
    expected = stepped(plain)
    assert plain.ahead is None, "a CPU gains nothing by it"
    monkeypatch.setattr(step_batches, "computes_apart", lambda _: True)
    run = prepared(case, configure, tmp_path)
    found = []
    for step in range(run.total_steps):
        used = run.ahead
        found += stepped(run, 1)
        assert used is None or used[0] == step
        # the last step has no next one
        assert (run.ahead is None) == (step == run.total_steps - 1)
    names = ("loss", "grad_norm", "tokens")
    assert [[line[n] for n in names] for line in found] == [
        [line[n] for n in names] for line in expected
    ]
    weights = snapshot(run).model
    assert all(torch.equal(w, weights[n]) for n, w in snapshot(plain).model.items())


def test_batches_are_made_before_the_device_is_waited_for(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_batches, "computes_apart", lambda _: True)
    run, order = prepared("lora", configure, tmp_path), []
    made, step = step_batches.collate, run.parallel_model.step

    def collate(*given: Any) -> Any:
        order.append("collate")
        return made(*given)

    def optimized() -> None:
        order.append("step")
        step()

    monkeypatch.setattr(step_batches, "collate", collate)
    monkeypatch.setattr(run.parallel_model, "step", optimized)
    stepped(run, 2)
    # three micro-batches a step, of 24 rows
    assert order == [*["collate"] * 6, "step", *["collate"] * 3, "step"]


def test_batches_of_another_step_are_not_used(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepared("lora", configure, tmp_path)
    plain.state.step = 3
    line, _ = loop.train_step(plain)
    monkeypatch.setattr(step_batches, "computes_apart", lambda _: True)
    run = prepared("lora", configure, tmp_path)
    step_batches.make_next(run)
    assert run.ahead is not None
    assert run.ahead[0] == 1
    run.state.step = 3
    assert loop.train_step(run)[0]["loss"] == line["loss"]
