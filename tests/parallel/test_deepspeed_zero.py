"""ZeRO by DeepSpeed trains what one process trains, and fills a file in as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from aift_ray.config import deepspeed_config
from aift_ray.config.deepspeed_keys import checked
from aift_ray.engine.lr_scheduler import learning_rate
from aift_ray.parallel import deepspeed_zero
from tests import parity
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.deepspeed_files import PUBLISHED
from tests.helpers.runs import on_workers

Configure = Callable[..., Any]
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs deepspeed: make test-deepspeed"
)


@needs_deepspeed
def test_two_workers_train_what_one_process_trains(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    cases = parity.deepspeed_cases()[::3]
    found = parity.compare(cases, tmp_path, tiny_model, rows)
    assert {case: v for case, v in found.items() if max(v) > parity.bound(case)} == {}


@needs_deepspeed
@pytest.mark.parametrize("name", [n for n, file in PUBLISHED.items() if "optimizer" in file])
def test_auto_is_filled_in_as_by_transformers(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    file = PUBLISHED[name]
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(file).replace("NVME", str(tmp_path)), "utf-8")
    how: dict[str, Any] = {"parallel__strategy": name[:5], "parallel__backend": "deepspeed"}
    how |= {"training__warmup_steps": 5, "training__precision": "fp32"}
    config = configure(**how, parallel__deepspeed_config=str(path))
    deepspeed_config.fill(config)
    training, steps, hidden = config.training, 20, 64
    args = SimpleNamespace(
        world_size=2,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_grad_norm=training.max_grad_norm,
        learning_rate=training.learning_rate,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        save_on_each_node=False,
        fp16=False,
        fp16_full_eval=False,
        bf16=False,
        bf16_full_eval=False,
        get_warmup_steps=lambda total: training.warmup_steps,
    )
    filled = HfTrainerDeepSpeedConfig(json.loads(path.read_text("utf-8")))
    filled.trainer_config_process(args)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
    filled.trainer_config_finalize(args, model, steps)
    theirs, ours = filled.config, deepspeed_config.engine_options(config.parallel)
    made = deepspeed_zero.engine_config(2, hidden, ours)["zero_optimization"]
    for key, value in theirs["zero_optimization"].items():
        if "weights_on_model" not in key and key != "aio":
            assert made[key] == value, key
    # the same file, filled in, contradicts nothing
    path.write_text(json.dumps(theirs), "utf-8")
    training.max_steps = steps
    assert deepspeed_config.problems(config, 2) == []
    section = theirs["scheduler"]
    weight = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], training.learning_rate)
    schedule = getattr(lr_schedules(), section["type"])(weight, **section["params"])
    for step in range(steps):
        rate = weight.param_groups[0]["lr"]
        assert learning_rate(training, step, steps) == pytest.approx(rate), step
        schedule.step()


def lr_schedules() -> Any:
    """Those of DeepSpeed."""
    from deepspeed.runtime import lr_schedules as found

    return found


@needs_deepspeed
@pytest.mark.parametrize("by_alias", [True, False])
def test_options_are_taken_where_they_are_as_deepspeed_has_them(by_alias: bool) -> None:
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.zero import config, offload_config

    made: dict[str, Any] = {
        "zero_optimization": config.DeepSpeedZeroConfig(stage=3),
        "bf16": precision_config.DeepSpeedBF16Config(),
        "fp16": precision_config.DeepSpeedFP16Config(),
        "offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig(),
        "offload_param": offload_config.DeepSpeedZeroOffloadParamConfig(),
    }
    file = {name: each.model_dump(mode="json", by_alias=by_alias) for name, each in made.items()}
    # names of classes of modules
    del file["zero_optimization"]["leaf_module"]
    for name in ("offload_optimizer", "offload_param"):
        file["zero_optimization"][name] = file.pop(name)
    assert checked(file)[1] == []


@needs_deepspeed
def test_weights_of_stage_3_are_partitioned_quantized_ones_too(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    cases = [("deepspeed zero3", m, "fp32", "concat") for m in ("full", "qlora nf4")]
    parity.compare(cases, tmp_path, tiny_model, rows)
    held = [json.loads((tmp_path / f"held{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    for case in cases:
        one, other = (each["|".join(case)] for each in held)
        # small weights stay whole on each worker: DeepSpeed's persistence threshold
        assert one == other > 0


@needs_deepspeed
def test_with_stage_3_no_worker_holds_more_than_a_block_whole_while_it_loads(
    tmp_path: Path, configure: Configure
) -> None:
    wide = {"hidden_size": 128, "num_hidden_layers": 6, "intermediate_size": 512}
    model = make_tiny_model(tmp_path / "model", **wide)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    weights.save_pretrained(model)
    how = {"parallel__strategy": "zero3", "parallel__backend": "deepspeed"}
    configs = {
        method: configure(model=str(model), method=method, **how) for method in ("full", "qlora")
    }
    on_workers(configs, tmp_path, module="tests.helpers.deepspeed_loading")
    for rank in (0, 1):
        found = json.loads((tmp_path / f"loading{rank}.json").read_text("utf-8"))
        for method, (whole, (*blocks, outside)) in found.items():
            assert len(blocks) == wide["num_hidden_layers"]
            assert 0 < whole <= max(*blocks, outside), (method, rank)
