"""Offload by DeepSpeed: what is chosen, planned, and looked for on a machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aift_ray import plan, tune
from aift_ray.config import deepspeed_config, deepspeed_offload
from aift_ray.config.run_config import RunConfig
from aift_ray.errors import ConfigError
from aift_ray.models.catalog import CATALOG
from aift_ray.planning.memory_parts import Memory
from aift_ray.planning.model_shape import Shape
from aift_ray.runs import memory_fit
from aift_ray.utils import deepspeed_check
from aift_ray.utils.exit_status import guarded

Configure = Callable[..., Any]


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
    stage: str, zero: dict[str, Any], wanted: Any, given: Callable[..., RunConfig]
) -> None:
    how = {"parallel__strategy": stage, "parallel__offload": True}
    config = given({"zero_optimization": zero}, **how)
    assert deepspeed_config.offloaded(config.parallel) == wanted


def test_one_worker_trains_with_offload_alone(
    given: Callable[..., RunConfig], configure: Configure
) -> None:
    how = {"parallel__strategy": "zero2", "parallel__backend": "deepspeed"}
    (problem,) = configure(**how).parallel.misfits(1, 1)
    assert "offload by --parallel.offload or the DeepSpeed file" in problem.remedy
    file = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert given(file, parallel__strategy="zero2").parallel.misfits(1, 1) == []


def test_the_plan_of_a_run_counts_what_its_file_offloads(
    given: Callable[..., RunConfig], configure: Configure
) -> None:
    shape = Shape.of(CATALOG["cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B"].config)

    def need(config: RunConfig) -> Memory:
        found = memory_fit.needs(config, shape, 2048, 2, True, 0)
        return memory_fit.own(config, found)

    how = {"parallel__backend": "deepspeed"}
    cpu, nvme = {"device": "cpu"}, {"device": "nvme", "nvme_path": "/nvme"}
    for stage, names in {"zero2": ("optimizer",), "zero3": ("optimizer", "param")}.items():
        file = {"zero_optimization": {f"offload_{name}": cpu for name in names}}
        wanted = configure(**how, parallel__strategy=stage, parallel__offload=True)
        assert need(given(file, parallel__strategy=stage)) == need(wanted)
    whole = need(configure(**how, parallel__strategy="zero3"))
    moments = need(given({"zero_optimization": {"offload_optimizer": cpu}}))
    on_disk = need(given({"zero_optimization": {"offload_optimizer": nvme}}))
    assert moments.optimizer == moments.gradients == 0 < moments.weights == whole.weights
    # what a checkpoint takes stays in host memory
    assert whole.host < on_disk.host < moments.host


def test_a_folder_is_judged_by_a_file_that_is_written_there(
    given: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(deepspeed_check, "_async_io", lambda gpu: [])
    file = {"device": "nvme", "nvme_path": str(tmp_path / "new" / "nvme")}
    config = given({"zero_optimization": {"offload_optimizer": file, "offload_param": file}})
    monkeypatch.setattr(deepspeed_check, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert deepspeed_check.check(config) == []
    assert not (tmp_path / "new").exists()
    deepspeed_check.check_worker(config.parallel, False)
    (tmp_path / "new").write_text("", "utf-8")
    texts = "\n".join(map(str, deepspeed_check.check(config)))
    for name in ("offload_optimizer", "offload_param"):
        assert f"zero_optimization.{name}.nvme_path is " in texts
    assert "no file can be written there" in texts
    assert "Not a directory" in texts
    # a worker tells of which machine
    with pytest.raises(ConfigError, match=f"on {os.uname().nodename}: zero_optimization"):
        deepspeed_check.check_worker(config.parallel, False)
    # permission to write is not enough: of a file system without direct access, or one to read
    assert os.access("/proc", os.R_OK)
    assert deepspeed_offload.unwritable("/proc/nvme")
    Path(str(config.parallel.deepspeed_config)).unlink()
    with pytest.raises(ConfigError, match=f"on {os.uname().nodename}: .*can't be read"):
        deepspeed_check.check_worker(config.parallel, False)


def test_what_device_nvme_needs_is_told_beside_the_rest(
    given: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = {"device": "nvme", "nvme_path": str(tmp_path)}
    config = given({"zero_optimization": {"offload_optimizer": file}})
    monkeypatch.setattr(deepspeed_check, "find_spec", lambda name: None)
    monkeypatch.setattr(deepspeed_check, "_links", lambda build: False)
    monkeypatch.setattr(deepspeed_check, "compiler", lambda gpu: "g++")
    texts = "\n".join(map(str, deepspeed_check.check(config)))
    assert "aift-ray[deepspeed]" in texts
    assert "apt-get install libaio-dev" in texts
    monkeypatch.setattr(deepspeed_check, "compiler", lambda gpu: None)
    assert "apt-get install g++" in "\n".join(map(str, deepspeed_check.check(config)))
    monkeypatch.setattr(deepspeed_check, "has_toolkit", lambda: False)
    assert "CUDA" not in "\n".join(map(str, deepspeed_check.check(config, gpu=False)))
    assert "set CUDA_HOME" in "\n".join(map(str, deepspeed_check.check(config, gpu=True)))


def test_a_sweep_tells_what_any_trial_lacks_beside_wrong_settings_and_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(deepspeed_check, "find_spec", lambda name: None)
    path = tmp_path / "space.yaml"

    def told(rate: str, batch: object) -> str:
        training = {"learning_rate": {"uniform": json.loads(rate)}, "batch_size": batch}
        backend = {"choice": ["fsdp2", "deepspeed"]}
        parallel = {"strategy": "zero3", "backend": backend}
        rows = {"train_files": ["no.jsonl"], "eval_files": ["no.jsonl"]}
        content = {"training": training, "parallel": parallel, "data": rows}
        path.write_text(json.dumps(content), "utf-8")
        flags = ["--config", str(path), "--ray.num_workers", "2", "--output-dir", str(tmp_path)]
        assert guarded(tune.run, flags) == 2
        return capsys.readouterr().err

    missing = ("parallel.backend: deepspeed is not installed", "no.jsonl: there is no such file")
    for found, wrong in (
        (told("[1e-5, 1e-4]", 1), ()),
        (told("[1e-5, 1e-4]", -1), ("training.batch_size: ",)),
        (told("[1e-4]", -1), ("training.batch_size: ", "training.learning_rate: uniform needs")),
    ):
        assert [part for part in (*missing, *wrong) if part not in found] == []


def test_the_plan_takes_every_backend_and_says_that_zero_needs_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables = {}
    for backend in ("auto", "fsdp2"):
        assert guarded(plan.run, ["--backend", backend, "--gpus", "2"]) == 0
        tables[backend] = capsys.readouterr().out
    assert tables["auto"] == tables["fsdp2"]
    assert guarded(plan.run, ["--backend", "deepspeed", "--method", "qlora"]) == 0
    table = capsys.readouterr().out
    assert table.count("and there is one: give --gpus 2 or more") == 3
    assert guarded(plan.run, ["--backend", "deepspeed", "--method", "full"]) == 0
    table = capsys.readouterr().out
    for stage in ("zero1", "zero2", "zero3"):
        assert re.search(rf"^{stage}, offload +yes ", table, re.MULTILINE)
    # of rows that are as fast, the one that sends least
    typed = "--strategy zero1 --num-workers 1 --parallel.backend deepspeed --parallel.offload true"
    assert typed in table
