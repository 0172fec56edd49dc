"""The trial of the longest micro-batch holds what a step holds, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import loop, optimizer
from aift_ray.errors import TrainingError
from aift_ray.planning.memory_estimate import moments
from tests.helpers.runs import started, stepped

Configure = Callable[..., Any]


def state_of(run_: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's tensors by weight and kind."""
    return {
        name: {kind: value for kind, value in own.items() if isinstance(value, torch.Tensor)}
        for name, own in run_.parallel_model.optimizer_state()["state"].items()
    }


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_moments_are_there_while_the_longest_batch_is_tried(
    method: str, kind: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(method=method, training__optimizer=kind)
    tried, plain = (started(config, tmp_path) for _ in range(2))
    assert not tried.optimizer.state
    loop.try_longest(tried)
    before = state_of(tried)
    assert all(
        not value.any() for own in before.values() for k, value in own.items() if k == "step"
    )
    # the same steps, and the same moments made, as without
    assert stepped(tried, 2)[-1]["loss"] == stepped(plain, 2)[-1]["loss"]
    after = state_of(plain)
    assert {n: set(own) for n, own in before.items()} == {n: set(own) for n, own in after.items()}
    for name, own in state_of(tried).items():
        assert all(torch.equal(value, after[name][one]) for one, value in own.items())
    if kind == "adamw":
        trained = sum(p.numel() for p in tried.module.parameters() if p.requires_grad)
        held = sum(v.nbytes for own in before.values() for k, v in own.items() if k != "step")
        assert held == moments(trained, kind)[0]


def test_moments_of_a_run_that_goes_on_stay(configure: Configure, tmp_path: Path) -> None:
    run_ = started(configure(method="lora"), tmp_path)
    stepped(run_, 1)
    before = {name: own["exp_avg"].clone() for name, own in state_of(run_).items()}
    loop.try_longest(run_)
    assert all(torch.equal(own["exp_avg"], before[n]) for n, own in state_of(run_).items())
    assert any(value.any() for value in before.values())


def test_moments_that_do_not_fit_end_the_trial_with_the_parts_and_a_remedy(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB.")

    monkeypatch.setattr(optimizer, "allocate", full)
    with pytest.raises(TrainingError, match=r"does not fit[^$]*optimizer [^$]*try --"):
        loop.try_longest(started(configure(), tmp_path))
