"""Runs by DeepSpeed go on after a stop, a kill and a change of strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from aift_ray.engine import checkpoint
from aift_ray.models.model_stats import measured
from aift_ray.planning import speed
from aift_ray.planning.gpu_specs import CARDS
from aift_ray.planning.memory_parts import Workload
from aift_ray.runs.prepare import prepare
from aift_ray.utils import deepspeed_check
from tests import parity
from tests.conftest import KEITAI, make_tiny_model
from tests.faults.kills import strike
from tests.helpers.command import Cluster, Command, curve_of, flags, summary_of
from tests.helpers.deepspeed_files import PUBLISHED
from tests.helpers.runs import on_workers, whole_on_workers
from tests.helpers.whole_runs import losses
from tests.parallel.test_strategies import STEADY, _close
from tests.ray_backend.test_elastic import check_elastic

Configure = Callable[..., Any]
pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs deepspeed: make test-deepspeed"
)
# what DeepSpeed compiles to keep tensors in files
needs_files = pytest.mark.skipif(
    find_spec("deepspeed") is not None and bool(deepspeed_check._async_io(gpu=False)),
    reason="needs g++, ninja and libaio",
)
STAGES = ("zero1", "zero2", "zero3")
STEP = Path("checkpoints") / "step-3"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_continues_under_any_strategy_and_back(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    def of(strategy: str, backend: str, resume: Path | None = None) -> Any:
        return configure(
            **STEADY | {"training__batch_size": 2},
            method=method,
            parallel__strategy=strategy,
            parallel__backend=backend,
            resume=str(resume) if resume else None,
            training__exact_match_rows=4,
            training__exact_match_max_tokens=4,
            data__validation_fraction=0.2,
        )

    whole_on_workers({name: of(name, "deepspeed") for name in STAGES}, tmp_path)
    onward = {f"{name} to itself": of(name, "deepspeed", tmp_path / name / STEP) for name in STAGES}
    onward |= {f"{name} to ddp": of("ddp", "auto", tmp_path / name / STEP) for name in STAGES}
    onward["zero3 to fsdp"] = of("fsdp", "auto", tmp_path / "zero3" / STEP)
    whole_on_workers(onward, tmp_path)
    back = {
        f"{other} to {name}": of(name, "deepspeed", tmp_path / before / STEP.with_name("step-6"))
        for name in STAGES
        for other, before in (("ddp", "zero1 to ddp"), ("fsdp", "zero3 to fsdp"))
    }
    for config in back.values():
        config.training.max_steps = 8
    whole_on_workers(back, tmp_path)
    wanted = losses(tmp_path / "zero1")
    for name in STAGES:
        assert losses(tmp_path / f"{name} to itself") == losses(tmp_path / name)[3:], "to the bit"
        others = losses(tmp_path / f"{name} to ddp")
        _close(others, wanted[3:])
        assert checkpoint.damage(tmp_path / name / "checkpoints" / "step-6") is None
        files = [
            sorted(p.name for p in (tmp_path / at / "checkpoints" / "step-6").iterdir())
            for at in (name, f"{name} to ddp")
        ]
        assert files[0] == files[1], "one format for all"
        moments = [
            load_file(tmp_path / at / "checkpoints" / "step-6" / checkpoint.MOMENTS)
            for at in (name, f"{name} to ddp")
        ]
        assert moments[0].keys() == moments[1].keys()
        for key, value in moments[0].items():
            torch.testing.assert_close(value, moments[1][key], rtol=1e-3, atol=1e-5, msg=key)
    _close(losses(tmp_path / "zero3 to fsdp"), wanted[3:])
    for other in back:
        _close(losses(tmp_path / other), losses(tmp_path / "ddp to zero1"))
    if method == "full":
        AutoModelForCausalLM.from_pretrained(tmp_path / "zero3" / "model")
    summary = json.loads((tmp_path / "zero3" / "summary.json").read_text("utf-8"))
    assert summary["exact_match"] is not None


@needs_files
def test_moments_in_host_memory_and_in_files_are_saved_and_restored_to_the_bit(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what DeepSpeed compiles in a minute is kept beside it
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    # partitions of 1 MB and more are in files
    wide = make_tiny_model(tmp_path / "wide", hidden_size=256, intermediate_size=1024)

    def of(device: str, stage: str, resume: Path | None = None) -> Any:
        return configure(
            **STEADY | {"training__batch_size": 2},
            model=str(wide),
            parallel__strategy=stage,
            parallel__backend="deepspeed",
            parallel__deepspeed_config=str(parity.offload_file(tmp_path, device, stage)),
            resume=str(resume) if resume else None,
        )

    pairs = (("cpu", "zero2"), ("cpu", "zero3"), ("nvme", "zero3"))
    whole_on_workers({f"{device} {stage}": of(device, stage) for device, stage in pairs}, tmp_path)
    files = [path for path in (tmp_path / "nvme").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 2**20
    saved = {pair: tmp_path / " ".join(pair) / STEP for pair in pairs}
    again = {f"again {' '.join(pair)}": of(*pair, saved[pair]) for pair in pairs}
    again["cpu to nvme"] = of("nvme", "zero3", saved["cpu", "zero3"])
    again["nvme to cpu"] = of("cpu", "zero2", saved["nvme", "zero3"])
    whole_on_workers(again, tmp_path)
    wanted = losses(tmp_path / "cpu zero3")
    for pair in pairs:
        name = " ".join(pair)
        _close(losses(tmp_path / name), wanted)
        assert losses(tmp_path / f"again {name}") == losses(tmp_path / name)[3:], "to the bit"
    for name in ("cpu to nvme", "nvme to cpu"):
        _close(losses(tmp_path / name), wanted[3:])


@needs_files
def test_a_lock_that_a_killed_compiler_has_left_holds_nobody_up() -> None:
    root = Path(sys.prefix) / "torch_extensions"
    locks = [root / name / "lock" for name in ("pin_memory", "async_io")]
    for lock in locks:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    code = """import torch; from aift_ray.parallel import deepspeed_compat as found
found.library(torch.device("cpu")); found.compile_async_io()"""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(root)}
    # a first build takes minutes
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=500)
    assert not any(lock.exists() for lock in locks)


def test_one_worker_with_a_published_file_trains_what_a_process_without_it_trains(
    configure: Configure, tmp_path: Path
) -> None:
    def of(stage: str, schedule: str) -> Any:
        how = STEADY | {"training__lr_scheduler": schedule, "training__warmup_steps": 2}
        if stage == "alone":
            return configure(**how)
        path = tmp_path / f"{stage}.json"
        path.write_text(json.dumps(PUBLISHED[f"{stage} offload"]), "utf-8")
        given = {"parallel__strategy": stage, "parallel__backend": "deepspeed"}
        return configure(**how, **given, parallel__deepspeed_config=str(path))

    schedules = {"zero2": "WarmupDecayLR", "zero3": "WarmupLR"}
    whole_on_workers({stage: of(stage, name) for stage, name in schedules.items()}, tmp_path, 1)
    for stage, name in schedules.items():
        whole_on_workers({f"alone {stage}": of("alone", name)}, tmp_path, 1)
        _close(losses(tmp_path / stage), losses(tmp_path / f"alone {stage}"))
        assert (tmp_path / stage / "model").is_dir()


@needs_files
@pytest.mark.slow
@pytest.mark.ray
def test_the_published_file_of_zero_infinity_trains_what_one_process_trains(
    tmp_path: Path,
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions")}
    path, nvme = tmp_path / "ds_config.json", tmp_path / "nvme"
    path.write_text(json.dumps(PUBLISHED["zero3 infinity"]).replace("NVME", str(nvme)), "utf-8")
    file = {"parallel__backend": "deepspeed", "parallel__deepspeed_config": path}
    for name, how in {
        "alone": {
            "num-workers": 1,
            "training__batch_size": 8,
            "training__lr_scheduler": "WarmupLR",
        },
        "infinity": {"strategy": "zero3", **file},
    }.items():
        more = {"method": "full", "training__max_steps": 6, "training__warmup_steps": 2, **how}
        argv = flags(Path("hina-4m"), KEITAI / "train.jsonl", tmp_path / name, **more)
        # the first run on a machine compiles async_io, which takes minutes
        status, output = Command(argv, environment).done(1200)
        assert status == 0, output
    files = [each for each in nvme.rglob("*") if each.is_file()]
    assert sum(each.stat().st_size for each in files) > 2**20
    _close(losses(tmp_path / "infinity"), losses(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    how = {"strategy": "zero3", "parallel__backend": "deepspeed", "training__save_steps": 10}

    def started(folder: Path) -> Command:
        rows, more = KEITAI / "train.jsonl", {"training__max_steps": 50, "ray__max_failures": 3}
        return Command(flags(Path("hina-4m"), rows, folder, **how, **more), environment)

    whole = started(tmp_path / "whole")
    assert whole.done(1200)[0] == 0, whole.output()
    killed = started(tmp_path / "killed")
    killed.at_checkpoint(tmp_path / "killed", 20)
    strike(killed, tmp_path / "killed", "worker")
    status, output = killed.done(1200)
    assert status == 0, output
    assert summary_of(tmp_path / "killed")["restarts"] == 1
    assert curve_of(tmp_path / "killed") == curve_of(tmp_path / "whole"), "to the bit"


@pytest.mark.slow
@pytest.mark.ray
def test_the_steps_stay_the_same_while_a_node_leaves_and_another_comes(
    small_cluster: Cluster, tmp_path: Path
) -> None:
    check_elastic(small_cluster, tmp_path, {"strategy": "zero3", "parallel__backend": "deepspeed"})


def test_a_full_device_is_told_the_parts_that_deepspeed_holds(
    configure: Configure, tmp_path: Path
) -> None:
    configs = {
        stage: configure(parallel__strategy=stage, parallel__backend="deepspeed")
        for stage in STAGES
    }
    said = on_workers(configs, tmp_path, module="tests.helpers.full_device")
    run = prepare(configs["zero2"], tmp_path / "run", 2, False, None)
    trained = run.parameters * 4
    # a copy of the partition that is stepped, two gradients of it, and two moments
    wanted = {
        "zero1": f"weights {gib(trained * 1.5)}, gradients {gib(trained * 1.5)}, optimizer",
        "zero2": f"weights {gib(trained * 1.5)}, gradients {gib(trained)}, optimizer",
        "zero3": f"weights {gib(trained / 2)}, gradients {gib(trained / 2)}, optimizer",
    }
    for stage, parts in wanted.items():
        assert "the longest micro-batch does not fit" in said[stage]
        assert parts in said[stage], stage
        assert f"optimizer {gib(trained)}" in said[stage]
        assert ", buffers " in said[stage]


def test_workers_send_what_the_estimate_of_speed_counts(
    configure: Configure, tmp_path: Path
) -> None:
    how = {"parallel__backend": "deepspeed", "training__batch_size": 1}
    how |= {"training__gradient_accumulation_steps": 4}
    configs = {stage: configure(**how, parallel__strategy=stage) for stage in STAGES}
    counted = on_workers(configs, tmp_path, module="tests.helpers.deepspeed_traffic")
    shape = measured(str(configs["zero1"].model), configs["zero1"]).shape
    card, full = CARDS["a5000"], Workload("full", 16, 64, 4, False, workers=2, by_deepspeed=True)
    for name in STAGES:
        found = counted[name]
        assert found["weights"] == shape.parameters * 4
        # an all-reduce sends each byte twice
        given = 2 * found["allreduce_"] + found["_allgather_base_"]
        given += found.get("_reduce_scatter_base_", 0)
        # so small a model stays gathered between forward and backward
        work = replace(full, strategy=name)
        waited = speed.training(shape, work, card, 64, 4).seconds["PCIe"]
        assert waited * 0.8 * card.pcie * 1e9 == pytest.approx(given / 2, rel=0.02), name


def gib(size: float) -> str:
    # full_device tells KiB
    return f"{size / 2**10:.2f} GiB"
