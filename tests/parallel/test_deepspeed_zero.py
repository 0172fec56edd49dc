"""ZeRO by DeepSpeed trains what one process trains; what it can't do is refused by name."""

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

from aift_ray.config import deepspeed_config
from aift_ray.errors import ConfigError
from aift_ray.launch import early_checks
from aift_ray.runs import deepspeed_check
from tests import parity
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.runs import spawn

Configure = Callable[..., Any]
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs deepspeed: make test-deepspeed"
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parallel__strategy": "fsdp"}, r"parallel\.backend: .*zero1, zero2 and zero3, not fsdp"),
        (
            {"parallel__offload": True, "method": "qlora"},
            r"parallel\.offload: can't move a base model of 4 bits",
        ),
        ({"training__compile": True}, r"training\.compile: .*DeepSpeed"),
        ({"training__precision": "fp16"}, r"training\.precision: fp16 scales the loss"),
        ({"training__optimizer": "adamw_8bit"}, r"training\.optimizer: .*needs unsharded weights"),
    ],
)
def test_what_it_can_not_have_is_refused_by_name(
    values: dict[str, Any], message: str, configure: Configure
) -> None:
    given = {"parallel__strategy": "zero3", "parallel__backend": "deepspeed"} | values
    with pytest.raises(ConfigError, match=message):
        configure(**given)


def test_where_it_is_not_installed_the_command_that_installs_it_is_told(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_checks, "find_spec", lambda name: None)
    config = configure(
        parallel__strategy="zero2",
        parallel__backend="deepspeed",
        ray__num_workers=2,
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(ConfigError, match=r"(?s)deepspeed is not installed.*aift-ray\[deepspeed\]"):
        early_checks.check_run(config)


FILE = {
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "sub_group_size": 1e9,
        "stage3_param_persistence_threshold": 1000,
        "offload_optimizer": {"device": "none"},
    },
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}


def test_a_file_counts_where_it_agrees_and_auto_is_filled_in(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(FILE), "utf-8")
    given = {"parallel__strategy": "zero3", "parallel__backend": "deepspeed"}
    config = configure(**given, parallel__deepspeed_config=str(path))
    # workers run in folders of their own
    monkeypatch.chdir(path.parent)
    relative = configure(**given, parallel__deepspeed_config=path.name)
    assert relative.parallel.deepspeed_config == config.parallel.deepspeed_config
    assert deepspeed_config.problems(config) == []
    assert deepspeed_config.engine_options(config.parallel) == {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "sub_group_size": 1e9,
            "stage3_param_persistence_threshold": 1000,
        }
    }


def test_what_a_file_contradicts_or_asks_for_in_vain_is_named_at_once(
    configure: Configure, tmp_path: Path
) -> None:
    path = tmp_path / "ds_config.json"
    given = {"parallel__strategy": "zero2", "parallel__backend": "deepspeed"}
    config = configure(
        **given,
        parallel__deepspeed_config=str(path),
        training__precision="fp32",
        ray__num_workers=2,
    )
    (missing,) = deepspeed_config.problems(config)
    assert "can't be read" in str(missing)
    wrong = FILE | {
        "bf16": {"enabled": True},
        "train_batch_size": 7,
        "gradient_clipping": 0.25,
        "optimizer": {"type": "Lamb", "params": {"lr": 3.0, "foo": 1}},
        "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "nvme", "pin_memory": 1, "ratio": 0.5},
            "offload_optimizer": {"device": "tape"},
            "zoo": 1,
            "reduce_bucket_size": "big",
            "allgather_bucket_size": 5e8,
            "sub_group_size": 0,
            "overlap_comm": "yes",
        },
        "aio": {"use_gds": True, "block_size": -1},
    }
    path.write_text(json.dumps(wrong), "utf-8")
    text = "\n".join(map(str, deepspeed_config.problems(config)))
    for part in (
        "bf16.enabled is True there, and training.precision is fp32",
        "train_batch_size is 7 there, and the global batch is 16",
        "gradient_clipping is 0.25 there, and training.max_grad_norm is",
        "optimizer.type is Lamb there",
        "optimizer.lr is 3.0 there, and training.learning_rate is 0.01",
        "stage is 3 there",
        "scheduler is not done by aift-ray",
        "zero_optimization.offload_param needs stage 3, not 2 (device nvme)",
        "zero_optimization.offload_param has no nvme_path",
        "zero_optimization.offload_param.pin_memory is 1",
        "zero_optimization.offload_param.ratio is not done by aift-ray",
        "zero_optimization.offload_optimizer.device is tape",
        "aio.use_gds is not done by aift-ray",
        "zero_optimization.zoo is not done by aift-ray",
        "zero_optimization.reduce_bucket_size is 'big'",
        "zero_optimization.sub_group_size is 0",
        "zero_optimization.overlap_comm is 'yes'",
        "aio.block_size is -1",
        "optimizer.params.foo is not done by aift-ray",
    ):
        assert part in text, (part, text)
    assert "allgather_bucket_size" not in text
    with pytest.raises(ConfigError, match="applies to backend deepspeed only"):
        configure(parallel__deepspeed_config=str(path))


@pytest.mark.parametrize(
    ("stage", "zero", "wanted"),
    [
        ("zero2", {}, {"offload_optimizer": {"device": "cpu"}}),
        ("zero3", {}, {f"offload_{what}": {"device": "cpu"} for what in ("optimizer", "param")}),
        (
            "zero3",
            {"offload_optimizer": {"device": "nvme", "nvme_path": "/disk", "buffer_count": "auto"}},
            {
                "offload_optimizer": {"device": "nvme", "nvme_path": "/disk"},
                "offload_param": {"device": "cpu"},
            },
        ),
    ],
)
def test_parallel_offload_chooses_what_a_file_leaves_out(
    stage: str, zero: dict[str, Any], wanted: Any, configure: Configure, tmp_path: Path
) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps({"zero_optimization": zero}), "utf-8")
    given = {"parallel__strategy": stage, "parallel__backend": "deepspeed"}
    config = configure(**given, parallel__offload=True, parallel__deepspeed_config=str(path))
    assert deepspeed_config.problems(config) == []
    assert deepspeed_config.offloaded(config.parallel) == wanted
    without = configure(**given, parallel__offload=True)
    assert deepspeed_config.offloaded(without.parallel)["offload_optimizer"] == {"device": "cpu"}


def test_a_folder_that_can_not_be_written_and_missing_libaio_are_told_before_the_start(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").write_text("", "utf-8")
    config = configure(
        parallel__strategy="zero3",
        parallel__backend="deepspeed",
        parallel__deepspeed_config=str(parity.offload_file(tmp_path / "file", "nvme", "zero3")),
    )
    monkeypatch.setattr(deepspeed_check, "_async_io", list)
    found = "\n".join(map(str, deepspeed_check.check(config)))
    for name in ("offload_optimizer", "offload_param"):
        place = tmp_path / "file" / "nvme"
        assert f"zero_optimization.{name}.nvme_path {place} can't be written" in found
    monkeypatch.undo()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(
        deepspeed_check, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "x.py"))
    )
    monkeypatch.setattr(deepspeed_check, "_links", lambda build: False)
    monkeypatch.setattr(deepspeed_check, "compiler", lambda gpu: "g++")
    assert "apt-get install libaio-dev" in "\n".join(map(str, deepspeed_check.check(config)))
    monkeypatch.setattr(deepspeed_check, "compiler", lambda gpu: None)
    assert "apt-get install g++" in "\n".join(map(str, deepspeed_check.check(config)))


@needs_deepspeed
def test_two_workers_train_what_one_process_trains(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    cases = parity.deepspeed_cases()[::3]
    found = parity.compare(cases, tmp_path, tiny_model, rows)
    assert {case: v for case, v in found.items() if max(v) > parity.bound(case)} == {}


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
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({k: v.model_dump(mode="json") for k, v in configs.items()}), "utf-8")
    spawn(path, 2, "tests.helpers.deepspeed_loading")
    for rank in (0, 1):
        found = json.loads((tmp_path / f"loading{rank}.json").read_text("utf-8"))
        for method, (whole, (*blocks, outside)) in found.items():
            assert len(blocks) == wide["num_hidden_layers"]
            assert 0 < whole <= max(*blocks, outside), (method, rank)
