"""The CPUs of a worker, where they are not given; the machines have 16."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.planning.candidates import Candidate
from aift_ray.planning.model_shape import Shape
from aift_ray.planning.run_workload import Answers, answers_of
from aift_ray.ray_backend import ray_trainer
from aift_ray.runs import memory_fit
from aift_ray.utils.host_memory import host_cpus

Configure = Callable[..., Any]


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory_fit, "host_cpus", lambda: 16)


def cpus(configure: Configure, workers_: int, **values: Any) -> float:
    config = configure(**values)
    memory_fit.settle_cpus(config, workers_)
    asked = ray_trainer.asked(config.ray, 1)["CPU"]
    assert asked == config.ray.cpus_per_worker
    return float(asked)


def test_with_offload_the_workers_share_the_machine(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    offload = {"parallel__offload": True, "parallel__strategy": "fsdp"}
    assert cpus(configure, 2, **offload) == 8
    assert cpus(configure, 3, **offload) == 5
    assert cpus(configure, 32, **offload) == 1
    assert cpus(configure, 2, **offload, ray__cpus_per_worker=3.0) == 3
    assert cpus(configure, 2) == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cpus(configure, 2, **offload) == 1, "the machines are others"


def test_a_container_has_as_many_cpus_as_its_limit(tmp_path: Path) -> None:
    there = host_cpus(tmp_path)
    assert there == len(os.sched_getaffinity(0)), "no limit"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert host_cpus(tmp_path) == there
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert host_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, cpus in ((-1, there), (50000, 1)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert host_cpus(tmp_path) == cpus


def test_rows_that_are_answered_count_by_their_own_length(configure: Configure) -> None:
    config = configure(training__exact_match_rows=400, training__exact_match_batch_size=64)
    longest = config.data.sequence_length
    many = answers_of(config, 2)
    assert many == (64, 64 * longest, 64 * (longest + config.training.exact_match_max_tokens))
    # a hundred rows there, each worker answers half of them
    few = answers_of(config, 2, 100, 70)
    assert few == (50, 50 * 70, 50 * (70 + config.training.exact_match_max_tokens))
    assert answers_of(config, 2, 100, 70, batched=False).rows == 1
    shape = Shape(256, 4, 4, 2, 64, 704, 5056, True)
    one, other, none = (
        memory_fit.needs(config, shape, 100, 2, False, 0, memory_fit.Host(0, 50), answers)(
            Candidate("lora", "ddp")
        )
        for answers in (many, few, Answers(0, 0, 0))
    )
    # keys and values of what is generated, and all prompts in one pass
    assert few.tokens * shape.cache_bytes(4) == other.cache
    assert one.total > other.total > none.total
    assert none.cache == 0
