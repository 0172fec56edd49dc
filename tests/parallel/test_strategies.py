"""A strategy trains what one process trains, and goes on from what another strategy saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from aift_ray.engine import checkpoint
from aift_ray.errors import ConfigError
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import write_rows
from tests.helpers.runs import whole_on_workers
from tests.helpers.whole_runs import evaluated, losses, run, run_on

Configure = Callable[..., Any]
CASES = [
    ("ddp", "qlora nf4", "fp32", "concat"),
    ("ddp", "qlora int8", "fp32", "concat"),
    ("fsdp", "full", "fp32", "concat"),
    ("fsdp", "full", "fp32", "recomputed"),
    ("fsdp", "full", "bf16", "concat"),
    ("fsdp", "lora", "fp32", "fill"),
    ("fsdp", "qlora nf4", "fp32", "padded"),
    ("zero1", "full", "fp32", "concat"),
    ("zero2", "qlora nf4", "fp32", "recomputed"),
    ("tensor", "full", "bf16", "concat"),
    ("tensor", "full", "fp32", "recomputed"),
    ("tensor", "lora", "fp32", "padded"),
    ("context", "full", "fp32", "recomputed"),
    ("context", "lora", "fp32", "fill"),
    ("context fsdp", "full", "fp32", "concat"),
    ("fsdp", "grpo full", "fp32", "concat"),
    ("zero1", "grpo lora", "fp32", "padded"),
]


def test_two_workers_train_what_one_process_trains(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = parity.compare(CASES, tmp_path, tiny_model, rows)
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}
    held = [json.loads((tmp_path / f"held{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    whole = held[0]["ddp|qlora nf4|fp32|concat"]
    shares = [of["fsdp|qlora nf4|fp32|padded"] for of in held]
    assert sum(shares) == whole, "nothing is held twice, 4-bit weights neither"
    assert max(shares) < 0.51 * whole


STEADY = {
    "training__lr_scheduler": "constant",
    "training__learning_rate": 1e-3,
    "training__save_steps": 3,
    "training__max_steps": 6,
    "training__batch_size": 4,
    "lora__lora_dropout": 0.0,
}


@pytest.fixture
def spread(configure: Configure, tmp_path: Path) -> Callable[..., None]:
    """Whole runs on two workers, of fsdp unless told, an output folder each."""

    def call(**runs: dict[str, Any]) -> None:
        common = STEADY | {"training__batch_size": 2, "parallel__strategy": "fsdp"}
        configs = {name: configure(**(common | values)) for name, values in runs.items()}
        whole_on_workers(configs, tmp_path)

    return call


def test_a_run_saved_under_one_strategy_goes_on_under_another(
    configure: Configure, spread: Callable[..., None], tmp_path: Path
) -> None:
    # three rows for two workers, answered one at a time: their shares are unequal
    best = evaluated(tmp_path) | {
        "training__exact_match_batch_size": 1,
        "training__load_best": True,
    }
    methods = {"full": best, "lora": {}, "qlora": {}}
    for method, more in methods.items():
        run(configure(method=method, **STEADY, **more), tmp_path / f"alone_{method}")
    # the workers of a split model see the same rows
    split = {"parallel__strategy": "tensor", "training__batch_size": 4}
    strategies = {"fsdp": ({}, list(methods)), "tensor": (split, ["full", "lora"])}
    pairs = [(name, method) for name, (_, some) in strategies.items() for method in some]
    runs = {}
    for name, method in pairs:
        how = {"method": method, **strategies[name][0]}
        runs[f"{name}_{method}"] = how | methods[method]
        # one without a copy for the writer: tensor after tensor
        runs[f"{name}_{method}"] |= {"training__async_save": method != "full"}
        runs[f"{name}_onward_{method}"] = how | {"resume": _step_3(tmp_path / f"alone_{method}")}
    spread(**runs)
    for name, method in pairs:
        wanted = losses(tmp_path / f"alone_{method}")
        back = configure(method=method, resume=_step_3(tmp_path / f"{name}_{method}"), **STEADY)
        run_on(back, tmp_path / f"{name}_back_{method}")
        _close(losses(tmp_path / f"{name}_{method}"), wanted)
        _close(losses(tmp_path / f"{name}_onward_{method}"), wanted[3:])
        _close(losses(tmp_path / f"{name}_back_{method}"), wanted[3:])
    for name in strategies:
        _same_final_folder(tmp_path, name, "full", AutoModelForCausalLM)
        _same_final_folder(tmp_path, name, "lora", AutoPeftModelForCausalLM)
        alone, two = (run_dir.summary(tmp_path / f"{n}_full") for n in ("alone", name))
        assert two["strategy"] == name
        assert two["best_step"] == alone["best_step"]
        assert two["exact_match"] == alone["exact_match"]
        assert two["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-4)


def _step_3(folder: Path) -> str:
    return str(folder / "checkpoints" / "step-3")


def _close(found: list[Any], wanted: list[Any]) -> None:
    assert [line[0] for line in found] == [line[0] for line in wanted]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-4)


def _same_final_folder(folder: Path, strategy: str, method: str, loader: Any) -> None:
    paths = [folder / f"{name}_{method}" for name in ("alone", strategy)]
    one, two = (loader.from_pretrained(path / "model") for path in paths)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    # the same files too: one format for all
    one, two = (path / "checkpoints" / "step-3" for path in paths)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    assert checkpoint.damage(two) is None


def test_one_worker_has_nobody_to_share_with(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is one"):
        prepare(configure(parallel__strategy="fsdp"), tmp_path, 1, False, None)
