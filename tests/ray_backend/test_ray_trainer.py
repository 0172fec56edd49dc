"""What workers' ends are told as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError

# what makes a run's arguments into what the dashboard shows
from ray.train.v2._internal.state.schema import _to_json_serializable_value

from aift_ray.errors import ConfigError
from aift_ray.ray_backend import ray_trainer
from aift_ray.runs import worker_env, worker_resources
from aift_ray.runs.prepare import prepare


def test_a_machine_out_of_memory_is_told_with_what_would_fit(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    config = configure(training__gradient_checkpointing=True)
    job = prepare(config, tmp_path, 1, False, None).job
    # as Ray 2.60 says it
    error = OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node "
        "(IP: 127.0.0.1, ID: 86d5) was 22.81GB used / 23.54GB limit (0.968)"
    )
    message = str(ray_trainer._explained(error, job))
    assert "out of memory and Ray stopped its workers (22.81GB used / 23.54GB)" in message
    assert "computed for a worker: " in message
    assert "optimizer" in message
    assert "--training.batch_size 4 --training.gradient_accumulation_steps 2" in message
    assert "OutOfMemoryError" in (tmp_path / "error.log").read_text("utf-8")


def test_more_workers_than_the_cluster_holds_are_refused(configure: Callable[..., Any]) -> None:
    config = configure(ray__num_workers=9)
    with pytest.raises(ConfigError, match="9 workers need 9 CPU, the cluster has 4"):
        worker_resources.check_resources(config, 9, False, {"CPU": 4.0})


def test_a_secret_is_in_no_runtime_environment_and_in_nothing_that_ray_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    passed = worker_env.secrets()
    assert passed.values == {"HF_TOKEN": "hf_secret"}
    assert "HF_TOKEN" not in worker_env.environment()
    shown = _to_json_serializable_value({"secrets": passed})
    assert "hf_secret" not in f"{shown} {passed!r} {passed}"
