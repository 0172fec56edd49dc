"""Moments of 8 bits and weights in bf16, sharded: trained, saved and resumed as by one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from aift_ray.engine import checkpoint
from aift_ray.engine.checkpoint import MOMENTS, WEIGHTS
from aift_ray.errors import ConfigError
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.runs import whole_on_workers
from tests.helpers.whole_runs import losses, run, run_on

Configure = Callable[..., Any]
CASES = [
    ("fsdp", "8bit full", "fp32", "concat"),
    ("zero2", "8bit lora", "fp32", "concat"),
    ("ddp", "rounded full", "bf16", "concat"),
    ("zero1", "rounded full", "bf16", "concat"),
    ("fsdp", "rounded 8bit full", "bf16", "concat"),
]
EIGHT = {"training__optimizer": "adamw_8bit"}
ROUNDED = {"training__bf16_stochastic_round": True, "training__precision": "bf16"}
STEADY = {
    "training__lr_scheduler": "constant",
    "training__learning_rate": 1e-3,
    "training__save_steps": 2,
    "training__max_steps": 4,
}


def test_two_workers_train_what_one_process_trains(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = parity.compare(CASES, tmp_path, tiny_model, rows)
    assert {c: v for c, v in found.items() if max(v) > parity.bound(c)} == {}


def test_runs_of_two_workers_go_on_to_the_bit_and_in_one_process(
    configure: Configure, tmp_path: Path
) -> None:
    # 98 rows of 64: the block of a scale would lie in two shards, and 32 bits are kept
    odd = str(make_tiny_model(tmp_path / "odd", intermediate_size=98))
    kinds = {"eight": EIGHT, "rounded": ROUNDED | EIGHT, "wide_rounded": ROUNDED}
    two = STEADY | {"model": odd, "parallel__strategy": "fsdp", "training__batch_size": 2}
    runs = {}
    for kind, more in kinds.items():
        resume = str(tmp_path / kind / "checkpoints" / "step-2")
        runs[kind] = two | more | {"training__async_save": kind != "eight"}
        runs[f"{kind}_on"] = two | more | {"resume": resume}
    one = STEADY | {"model": odd, "training__batch_size": 4}
    alone = run(configure(**one, **EIGHT), tmp_path / "alone")
    step = str(tmp_path / "alone" / "checkpoints" / "step-2")
    runs["shared"] = two | EIGHT | {"resume": step}
    whole_on_workers({name: configure(**values) for name, values in runs.items()}, tmp_path)
    for kind in kinds:
        assert losses(tmp_path / f"{kind}_on") == losses(tmp_path / kind)[2:], "to the bit"
        ends = [tmp_path / n / "checkpoints" / "step-4" for n in (kind, f"{kind}_on")]
        for name in (MOMENTS, WEIGHTS):
            first, second = (load_file(end / name) for end in ends)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)
        assert checkpoint.damage(ends[0]) is None
        back = configure(**one, **kinds[kind], resume=str(ends[0].with_name("step-2")))
        run_on(back, tmp_path / f"{kind}_back")
        loose = 1e-3 if kind == "eight" else 2e-2
        _close(losses(tmp_path / f"{kind}_back"), losses(tmp_path / kind)[2:], loose)
    _close(losses(tmp_path / "shared"), losses(tmp_path / "alone")[2:], 1e-3)
    assert alone.resumed_from is None
    _check_dtypes(tmp_path / "eight" / "checkpoints" / "step-2", {"F32"})
    _check_dtypes(tmp_path / "rounded" / "checkpoints" / "step-2", {"BF16"})


def _close(found: list[Any], wanted: list[Any], apart: float) -> None:
    a, b = torch.tensor(found), torch.tensor(wanted)
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=apart, atol=apart)


def _check_dtypes(folder: Path, weights: set[str]) -> None:
    """Dtypes of the weights' file, and which moments are codes of 8 bits."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == weights  # noqa: SIM118
    moments = load_file(folder / MOMENTS)
    kinds = {key.partition("layers.0.")[2]: t.dtype for key, t in moments.items()}
    assert kinds["self_attn.q_proj.weight.exp_avg"] is torch.uint8
    # 64 x 98: a row of the shard is no multiple of a block
    assert kinds["mlp.up_proj.weight.exp_avg"] is torch.float32
    assert "mlp.up_proj.weight.exp_avg_absmax" not in kinds


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            EIGHT | {"parallel__strategy": "tensor"},
            "adamw_8bit is not possible with strategy tensor",
        ),
        (
            EIGHT | {"parallel__strategy": "fsdp", "parallel__offload": True},
            r"training\.optimizer.*not possible with parallel\.offload",
        ),
        (
            EIGHT | {"parallel__strategy": "zero2", "parallel__backend": "deepspeed"},
            r"training\.optimizer.*not possible with parallel\.backend deepspeed",
        ),
        (ROUNDED | {"parallel__strategy": "pipeline"}, "bf16_stochastic_round.*strategy pipeline"),
        (ROUNDED | {"parallel__strategy": "tensor"}, "bf16_stochastic_round.*strategy tensor"),
        (
            ROUNDED | {"parallel__strategy": "model_parallel"},
            "bf16_stochastic_round.*strategy model_parallel",
        ),
        (
            ROUNDED | {"parallel__strategy": "fsdp", "parallel__offload": True},
            r"bf16_stochastic_round.*parallel\.offload",
        ),
        (ROUNDED | {"method": "lora"}, "bf16_stochastic_round.*is for method full"),
        (ROUNDED | {"training__precision": "fp16"}, "bf16_stochastic_round.*precision is another"),
    ],
)
def test_what_they_can_t_train_is_refused_by_name(
    values: dict[str, Any], told: str, configure: Configure
) -> None:
    with pytest.raises(ConfigError, match=told):
        configure(**values)


def test_precision_auto_of_a_cpu_is_refused_by_name(configure: Configure, tmp_path: Path) -> None:
    config = configure(training__bf16_stochastic_round=True)
    with pytest.raises(ConfigError, match=r"precision auto on a CPU is fp32"):
        prepare(config, tmp_path, 1, False, None)
