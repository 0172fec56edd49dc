"""AdamW with smaller moments trains nearly the same, is saved by weight, and is refused in time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aift_ray.engine.checkpoint import MOMENTS, damage
from aift_ray.errors import ConfigError
from aift_ray.planning.candidates import Candidate, candidates, remedy
from aift_ray.planning.memory_estimate import moments
from aift_ray.runs.prepare import prepare
from tests.helpers.runs import curve, started, stepped
from tests.helpers.whole_runs import Killed, losses, run, run_on

Configure = Callable[..., Any]
EIGHT = {"training__optimizer": "adamw_8bit"}
STEADY = {
    "training__keep_checkpoints": 9,
    "training__batch_size": 4,
    "training__num_epochs": 2,
    "training__save_steps": 3,
    "training__learning_rate": 1e-3,
}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_moments_of_8_bits_train_nearly_what_those_of_32_do(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    more = STEADY | {"method": method, "lora__lora_dropout": 0.0}
    if method != "full":
        more["training__learning_rate"] = 1e-2
    plain, small = (torch.tensor(curve(configure(**more, **o), tmp_path)) for o in ({}, EIGHT))
    # matrices under 4,096 weights keep 32 bits, and those of adapters here are so
    assert torch.equal(plain, small) == (method != "full")
    assert plain[-1, 0] < plain[0, 0] - 0.1
    torch.testing.assert_close(small[:, 0], plain[:, 0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_with_moments_of_8_bits_gives_the_losses_of_one_never_stopped(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(method=method, **STEADY, **EIGHT)
    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", kill_at=3)
    run(config, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole"), "to the bit"
    step = tmp_path / "killed" / "checkpoints" / "step-3"
    assert damage(step) is None
    saved = load_file(step / MOMENTS)
    assert (torch.uint8 in {t.dtype for t in saved.values()}) == (method == "full")
    assert any(name.endswith("q_proj.weight.exp_avg") or "lora_A" in name for name in saved)


@pytest.mark.parametrize("names", [("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")])
def test_a_run_goes_on_with_the_other_moments(
    names: tuple[str, str], configure: Configure, tmp_path: Path
) -> None:
    first, second = (configure(**STEADY, training__optimizer=name) for name in names)
    run(first, tmp_path / "first")
    whole = losses(tmp_path / "first")
    onward = second.model_copy(
        update={"resume": str(tmp_path / "first" / "checkpoints" / "step-3")}
    )
    run_on(onward, tmp_path / "second")
    found = losses(tmp_path / "second")
    assert [line[0] for line in found] == [line[0] for line in whole[3:]]
    assert found[0][1] == pytest.approx(whole[3][1], rel=1e-5), "the same weights"
    torch.testing.assert_close(torch.tensor(found), torch.tensor(whole[3:]), rtol=5e-2, atol=5e-2)


def test_moments_that_change_their_bits_keep_their_values(
    configure: Configure, tmp_path: Path
) -> None:
    wide, small = (
        started(configure(**STEADY, training__optimizer=name), tmp_path)
        for name in ("adamw", "adamw_8bit")
    )
    stepped(wide, 3)
    before = wide.parallel_model.optimizer_state()
    small.parallel_model.load_optimizer_state(before)
    wide.parallel_model.load_optimizer_state(small.parallel_model.optimizer_state())
    after = wide.parallel_model.optimizer_state()
    for name, moments_of in before["state"].items():
        got = after["state"][name]
        assert float(got["step"]) == 3
        for kind in ("exp_avg", "exp_avg_sq"):
            wanted = moments_of[kind]
            # a code is within an eighth of the largest of its block, and much nearer near zero
            assert float((got[kind] - wanted).abs().max()) <= float(wanted.abs().max()) / 8


def test_the_computed_memory_of_moments_is_what_they_take(
    configure: Configure, tmp_path: Path
) -> None:
    for name in ("adamw", "adamw_8bit"):
        made = started(configure(**STEADY, training__optimizer=name), tmp_path)
        stepped(made, 1)
        state = made.parallel_model.optimizer_state()["state"]
        large = {n: s for n, s in state.items() if s["exp_avg"].numel() >= 4096}
        found = sum(t.nbytes for s in large.values() for t in s.values() if t.ndim)
        trained = sum(s["exp_avg"].numel() for s in large.values())
        assert found == pytest.approx(moments(trained, name)[0], rel=2e-2)
        assert trained > 0.9 * sum(p.numel() for p in made.module.parameters())


def test_paged_moments_are_counted_in_the_host() -> None:
    device, host = moments(1_000_000, "paged_adamw")
    assert (device, host) == (0, 8_000_000)
    assert moments(1_000_000, "paged_adamw_8bit") == (0, 2_031_250)
    assert moments(1_000_000, "paged_adamw_8bit", full=False) == (2_031_250, 0)


def test_what_they_can_t_train_is_refused_before_anything_starts(
    configure: Configure, tmp_path: Path
) -> None:
    for name in ("paged_adamw", "paged_adamw_8bit"):
        with pytest.raises(ConfigError, match=rf"{name} pages a GPU's memory"):
            prepare(configure(training__optimizer=name), tmp_path, 1, False, None)
    with pytest.raises(ConfigError, match="spill_to_cpu"):
        configure(
            training__optimizer="paged_adamw",
            parallel__strategy="model_parallel",
            parallel__spill_to_cpu=True,
            parallel__max_memory_per_gpu={0: "1GB"},
        )
    with pytest.raises(ConfigError, match=r"training\.optimizer: 'sgd' is not allowed"):
        configure(training__optimizer="sgd")


def test_auto_chooses_among_the_ways_that_they_can_train(
    configure: Configure, tmp_path: Path
) -> None:
    ways = [Candidate("full", name) for name in ("ddp", "zero2", "fsdp")]
    assert candidates("full", 2, None, offloads=False) == ways
    run = prepare(configure(parallel__strategy="auto", **EIGHT), tmp_path, 2, False, None)
    assert run.job.config.parallel.strategy == "ddp"
    tight = configure(training__batch_size=1, training__gradient_checkpointing=True)
    assert remedy(tight) == "--training.optimizer adamw_8bit"
    smaller = tight.training.model_copy(update={"optimizer": "adamw_8bit"})
    narrower = tight.model_copy(update={"training": smaller})
    assert remedy(narrower) == "--training.bf16_stochastic_round true"
