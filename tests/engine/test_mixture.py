"""A mixture of experts: every strategy trains what one process trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine.checkpoint.writer import snapshot
from aift_ray.errors import ConfigError
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_mixture, write_rows
from tests.helpers.runs import curve, started, stepped
from tests.helpers.whole_runs import resumed_exactly, run
from tests.parallel.test_model_parallel import placed

Configure = Callable[..., Any]

CASES = [
    ("ddp", "mixture full", "fp32", "concat"),
    ("ddp", "mixture qlora nf4", "fp32", "recomputed"),
    ("fsdp", "mixture full", "fp32", "recomputed"),
    ("fsdp", "mixture lora", "fp32", "padded"),
    ("fsdp", "mixture qlora nf4", "fp32", "concat"),
    ("zero1", "mixture lora", "fp32", "concat"),
    ("zero2", "mixture qlora nf4", "fp32", "padded"),
    ("pipeline", "mixture full", "fp32", "concat"),
    ("pipeline", "mixture lora", "fp32", "recomputed"),
    ("pipeline", "mixture qlora nf4", "fp32", "concat"),
]


def test_two_workers_train_what_one_process_trains(tiny_mixture: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = parity.compare(CASES, tmp_path, tiny_mixture, rows, {"mixture": tiny_mixture})
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}
    held = [json.loads((tmp_path / f"held{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    whole = held[0]["ddp|mixture qlora nf4|fp32|recomputed"]
    shares = [of["fsdp|mixture qlora nf4|fp32|concat"] for of in held]
    assert sum(shares) == whole, "nothing is held twice, 4-bit experts neither"
    assert max(shares) < 0.51 * whole


@pytest.fixture
def mixture(tiny_mixture: Path, configure: Configure) -> Configure:
    """A configuration of a run on the tiny mixture, its experts adapted by LoRA."""
    common = {"model": str(tiny_mixture), "lora__experts": True, "lora__lora_dropout": 0.0}
    return lambda **values: configure(**(common | values))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_layers_over_devices_train_what_one_device_trains(
    method: str, mixture: Configure, tmp_path: Path
) -> None:
    more = {"method": method, "training__batch_size": 4}
    alone = started(mixture(**more), tmp_path)
    apart = placed(mixture(parallel__strategy="model_parallel", **more), tmp_path)
    found = [[(line["loss"], line["grad_norm"]) for line in stepped(one)] for one in (alone, apart)]
    weights = [snapshot(one).model for one in (alone, apart)]
    assert max(parity.differences((found[0], weights[0]), (found[1], weights[1]))) == 0


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_resumed_run_gives_the_losses_of_one_that_was_never_stopped(
    method: str, mixture: Configure, tmp_path: Path
) -> None:
    config = mixture(method=method, training__batch_size=4, training__save_steps=3)
    resumed_exactly(config, tmp_path)


def test_routers_are_frozen_under_lora_and_trained_in_full(
    mixture: Configure, tmp_path: Path
) -> None:
    for method, trained in (("lora", 0), ("full", 2)):
        model = started(mixture(method=method), tmp_path).module.model
        routers = [p for name, p in model.named_parameters() if ".mlp.gate." in name]
        assert len(routers) == 2
        assert sum(p.requires_grad for p in routers) == trained


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"data__packing": "false"},
    "recomputed": {"training__gradient_checkpointing": True},
    "accumulated": {"training__batch_size": 2, "training__gradient_accumulation_steps": 4},
}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_batch_of_eight_is_the_same_step(method: str, mixture: Configure, tmp_path: Path) -> None:
    gentle = {"method": method, "training__learning_rate": 1e-3}
    whole = curve(mixture(**gentle), tmp_path)
    assert whole[-1][0] < whole[0][0], "it learns"
    for name, values in LAYOUTS.items():
        found = torch.tensor(curve(mixture(**gentle, **values), tmp_path))
        torch.testing.assert_close(torch.tensor(whole), found, rtol=1e-4, atol=1e-4, msg=name)


def test_the_user_is_told_what_8_bits_and_peft_leave_out(
    configure: Configure, tiny_mixture: Path, tmp_path: Path
) -> None:
    def warnings(**values: Any) -> str:
        return "\n".join(prepare(configure(**values), tmp_path, 1, False, None).warnings)

    eight = {"model": str(tiny_mixture), "method": "qlora", "lora__qlora_4bit": False}
    assert "147,456 weights are held as without quantization" in warnings(**eight)
    half = make_tiny_mixture(tmp_path / "half", mlp_only_layers=[0])
    told = "no adapters on mlp.down_proj, mlp.experts.down_proj, mlp.experts.gate_up_proj"
    assert told in warnings(model=str(half), method="lora")
    assert "and experts by --lora.experts true" in warnings(model=str(half), method="lora")
    adapted = {"lora__experts": True, "lora__lora_dropout": 0.0}
    assert "experts" not in warnings(model=str(tiny_mixture), method="lora", **adapted)
    begun = started(configure(model=str(half), method="lora"), tmp_path)
    adapted = {
        name.split(".")[-4] for name, p in begun.module.named_parameters() if p.requires_grad
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"lora__lora_dropout": 0.05}, "lora.lora_dropout"),
        ({"lora__use_dora": True}, "lora.use_dora"),
        ({"lora__init_lora_weights": "pissa"}, "lora.init_lora_weights"),
        ({"training__compile": True}, "training.compile"),
    ],
)
def test_settings_that_peft_has_not_for_experts_are_refused_by_name(
    values: dict[str, Any], field: str, mixture: Configure
) -> None:
    with pytest.raises(ConfigError) as refused:
        mixture(method="lora", **values)
    assert [problem.where for problem in refused.value.problems] == [field]


def test_experts_of_a_dense_model_are_refused(configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", lora__experts=True, lora__lora_dropout=0.0)
    with pytest.raises(ConfigError, match="the model has no experts"):
        prepare(config, tmp_path, 1, False, None)


@pytest.mark.parametrize("adapted", [True, False])
def test_a_checkpoint_goes_on_with_the_experts_it_was_made_with_only(
    adapted: bool, mixture: Configure, tmp_path: Path
) -> None:
    steps = {"method": "lora", "training__save_steps": 1, "training__max_steps": 1}
    run(mixture(lora__experts=adapted, **steps), tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-1"
    same = mixture(lora__experts=adapted, method="lora")
    assert prepare(same, tmp_path, 1, False, step).job.resume == step
    with pytest.raises(ConfigError, match=r"give --lora\.experts"):
        prepare(mixture(lora__experts=not adapted, method="lora"), tmp_path, 1, False, step)
