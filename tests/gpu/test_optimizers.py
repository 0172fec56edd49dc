"""Moments in 8 bits and in pages on a GPU: what they train, hold and go on from."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine.build import build
from aift_ray.engine.worker_run import Run
from aift_ray.parallel.group import Group
from aift_ray.planning.memory_estimate import moments
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.helpers.runs import stepped

Configure = Callable[..., Any]
SMALL = ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
STEADY = {
    "training__batch_size": 4,
    "training__num_epochs": 2,
    "training__save_steps": 3,
    "training__keep_checkpoints": 9,
    "training__learning_rate": 1e-3,
    "lora__lora_dropout": 0.0,
}


def on_gpu(config: Any, folder: Path, resume: Path | None = None) -> Run:
    """A run on the first GPU, ready for its first step."""
    prepared = prepare(config, folder, 1, True, resume)
    return build(prepared.job, Group(0, 1, torch.device("cuda", 0)), resume)


def whole(config: Any, folder: Path, resume: Path | None = None) -> list[tuple[float, float]]:
    """A run from start to end on the first GPU; loss and gradient norm of each step."""
    import json

    from aift_ray.engine.worker import work

    prepared = prepare(config, folder, 1, True, resume)
    run_dir.start(prepared.job.config, folder)
    work(prepared.job, Group(0, 1, torch.device("cuda", 0)))
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [(line["loss"], line["grad_norm"]) for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.parametrize(
    ("method", "precision"),
    [("full", "fp32"), ("full", "bf16"), ("full", "fp16"), ("lora", "bf16"), ("qlora", "bf16")],
)
def test_smaller_moments_train_nearly_what_those_of_torch_do(
    method: str, precision: str, configure: Configure, tmp_path: Path
) -> None:
    more = STEADY | {"method": method, "training__precision": precision}
    if method != "full":
        more["training__learning_rate"] = 1e-2
    found = {}
    for name in ("adamw", *SMALL):
        run = on_gpu(configure(**more, training__optimizer=name), tmp_path)
        found[name] = torch.tensor([line["loss"] for line in stepped(run)])
    assert found["adamw"][-1] < found["adamw"][0] - 0.1, "it learns"
    exact = 1e-4 if precision == "fp32" else 2e-2
    torch.testing.assert_close(found["paged_adamw"], found["adamw"], rtol=exact, atol=exact)
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        torch.testing.assert_close(found[name], found["adamw"], rtol=2e-2, atol=3e-2)
    torch.testing.assert_close(
        found["paged_adamw_8bit"], found["adamw_8bit"], rtol=exact, atol=exact
    )


@pytest.mark.parametrize("name", SMALL)
def test_a_run_goes_on_from_its_checkpoint(name: str, configure: Configure, tmp_path: Path) -> None:
    config = configure(**STEADY, training__optimizer=name)
    wanted = whole(config, tmp_path / "whole")
    step = tmp_path / "whole" / "checkpoints" / "step-3"
    found = whole(config, tmp_path / "onward", step)
    # GPUs add in no fixed order
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted[3:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("adamw", "paged_adamw_8bit"), ("paged_adamw_8bit", "adamw")])
def test_a_run_goes_on_with_other_moments(
    names: tuple[str, str], configure: Configure, tmp_path: Path
) -> None:
    first, second = (configure(**STEADY, training__optimizer=name) for name in names)
    wanted = whole(first, tmp_path / "first")
    found = whole(second, tmp_path / "second", tmp_path / "first" / "checkpoints" / "step-3")
    assert found[0][0] == pytest.approx(wanted[3][0], rel=1e-4), "the same weights"
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted[3:]), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_moments_take_no_memory_of_torch_and_stay_paged_after_a_restart(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    from tests.conftest import SHIPPED

    config = configure(**STEADY, model=str(SHIPPED), training__optimizer=name)
    plain = configure(**STEADY, model=str(SHIPPED))
    held = {}
    for kind, one in (("plain", plain), ("paged", config)):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = on_gpu(one, tmp_path)
        stepped(run, 1)
        held[kind] = torch.cuda.memory_allocated() - before
        if kind == "paged":
            saved = run.parallel_model.optimizer_state()
            again = on_gpu(one, tmp_path)
            again.parallel_model.load_optimizer_state(saved)
            for of in (run, again):
                large = [p for p in of.module.parameters() if p.numel() >= 100_000]
                states = [of.optimizer.state[p] for p in large]
                assert states
                assert all(getattr(state["state1"], "is_paged", False) for state in states)
            restored = again.parallel_model.optimizer_state()["state"]
            for weight, wanted in saved["state"].items():
                for moment, value in wanted.items():
                    assert torch.equal(restored[weight][moment].cpu(), value.cpu())
            del again
        trained = sum(p.numel() for p in run.module.parameters() if p.numel() >= 100_000)
        del run
    # of the weights, gradients of none are left: the difference is the moments
    assert held["plain"] - held["paged"] > 0.9 * moments(trained, "adamw")[0] - 2**20


def test_moments_of_8_bits_take_a_quarter(configure: Configure, tmp_path: Path) -> None:
    from tests.conftest import SHIPPED

    held = {}
    for name in ("adamw", "adamw_8bit"):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = on_gpu(configure(**STEADY, model=str(SHIPPED), training__optimizer=name), tmp_path)
        built = torch.cuda.memory_allocated()
        stepped(run, 1)
        state = run.parallel_model.optimizer_state()["state"].values()
        held[name] = sum(t.nbytes for s in state for t in s.values() if t.ndim)
        assert torch.cuda.memory_allocated() - built >= 0.9 * held[name], (before, built)
        del run, state
    assert held["adamw_8bit"] < 0.27 * held["adamw"]


@pytest.mark.parametrize("name", ["adamw", *SMALL])
def test_bf16_weights_train_nearly_what_those_of_fp32_do(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    more = STEADY | {"training__precision": "bf16", "training__optimizer": name}
    rounded = more | {"training__bf16_stochastic_round": True}
    wide, small, again = (
        torch.tensor([line["loss"] for line in stepped(on_gpu(configure(**how), tmp_path))])
        for how in (more, rounded, rounded)
    )
    assert small[-1] < small[0] - 0.1, "it learns"
    torch.testing.assert_close(small, wide, rtol=2e-2, atol=3e-2)
    torch.testing.assert_close(again, small, rtol=1e-3, atol=1e-3)


def test_bf16_weights_and_gradients_take_half(configure: Configure, tmp_path: Path) -> None:
    from tests.conftest import SHIPPED

    held = {}
    for rounded in (False, True):
        more = {"training__bf16_stochastic_round": rounded, "training__precision": "bf16"}
        run = on_gpu(configure(**STEADY, model=str(SHIPPED), **more), tmp_path)
        held[rounded] = sum(p.nbytes for p in run.module.parameters())
        stepped(run, 1)
        assert {p.dtype for p in run.module.parameters()} == {
            torch.bfloat16 if rounded else torch.float32
        }
        del run
    assert held[True] * 2 == held[False]


def test_rounding_on_a_gpu_draws_the_bits_of_a_cpu() -> None:
    from aift_ray.parallel.stochastic_rounding import rounded

    numbers = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    there = rounded(numbers.cuda(), -123_456_789, 5).cpu()
    assert torch.equal(there, rounded(numbers, -123_456_789, 5))
