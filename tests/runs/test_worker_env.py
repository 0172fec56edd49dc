"""What a worker is told by its environment."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aift_ray.config import RunConfig
from aift_ray.ray_backend import ray_trainer
from aift_ray.ray_backend.serve_app import deployment
from aift_ray.runs import worker_env
from tests.serving.engines.test_engine_select import config as serving_config

ALLOCATOR = "PYTORCH_ALLOC_CONF"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "TORCH_DISABLE_NATIVE_JIT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(worker_env, "builds_launchers", lambda: True)


def test_settings_of_nccl_and_torch_are_handed_on_and_secrets_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed = ("NCCL_IB_DISABLE", "TORCH_NCCL_TRACE", ALLOCATOR, "CUDA_DEVICE_ORDER", "PYTHONPATH")
    kept = ("TORCH_HUB_TOKEN", "NCCL_SECRET", "PYTORCH_API_KEY", "HF_TOKEN", "HOME", "TORCHELASTIC")
    for name in (*handed, *kept):
        monkeypatch.setenv(name, "x")
    told = worker_env.environment()
    assert {name for name in handed if told.get(name) == "x"} == set(handed)
    assert not set(kept) & set(told)


def test_proxies_mirrors_and_trackers_are_handed_on_and_passwords_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = ("HF_ENDPOINT", "HF_HUB_ETAG_TIMEOUT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    shown += ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT")
    hidden = ("HTTPS_PROXY", "https_proxy", "no_proxy", "WANDB_API_KEY", "MLFLOW_TRACKING_URI")
    hidden += ("MLFLOW_TRACKING_PASSWORD", "HF_TOKEN")
    for name in (*shown, *hidden):
        monkeypatch.setenv(name, "http://user:word@proxy:8080")
    told, secrets = worker_env.environment(), worker_env.secrets()
    assert set(shown) <= set(told)
    assert not set(hidden) & set(told)
    assert set(hidden) <= set(secrets.values)
    assert "word" not in repr(secrets)


@pytest.mark.parametrize("offload", [False, True])
def test_torch_knows_each_setting_of_its_allocator(offload: bool) -> None:
    settings = worker_env.on_gpus(offload)[ALLOCATOR]
    assert ("pinned_max_round_threshold_mb:1" in settings) == offload
    assert "expandable_segments:True" in settings
    parse: Any = torch._C._accelerator_setAllocatorSettings
    parse("no_such_setting:wrong")
    for setting in settings.split(","):
        # a wrong value is refused where the name is known alone
        with pytest.raises(ValueError, match=r"True|stoull"):
            parse(f"{setting.partition(':')[0]}:wrong")


@pytest.mark.parametrize("name", [ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF"])
def test_an_allocator_that_the_user_has_set_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:64")
    assert ALLOCATOR not in worker_env.on_gpus(offload=True)
    assert worker_env.environment()[name] == "max_split_size_mb:64"


def test_triton_is_left_out_where_nothing_compiles_or_nobody_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = "TORCH_DISABLE_NATIVE_JIT"
    assert switch not in worker_env.on_gpus(offload=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert worker_env.on_gpus(offload=False)[switch] == "1"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(worker_env, "builds_launchers", lambda: False)
    assert worker_env.on_gpus(offload=False)[switch] == "1"
    monkeypatch.setenv(switch, "0")
    assert switch not in worker_env.on_gpus(offload=False)
    assert worker_env.environment()[switch] == "0"


def test_workers_on_gpus_are_told_before_they_start(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_trainer, "TorchTrainer", lambda *_, **how: SimpleNamespace(**how))
    for gpu in (True, False):
        config = configure(parallel__offload=gpu, parallel__strategy="fsdp")
        job: Any = SimpleNamespace(config=config, output=Path("nowhere"))
        made: Any = ray_trainer._trainer(job, (2, 2), gpu)
        told = made.run_config.worker_runtime_env["env_vars"].get(ALLOCATOR)
        assert told == ("expandable_segments:True,pinned_max_round_threshold_mb:1" if gpu else None)


def test_replicas_on_gpus_are_told_too() -> None:
    def told(gpus: int) -> str | None:
        made = deployment(serving_config(engine="transformers"), None, {"CPU": 2, "GPU": gpus})
        options: Any = made._bound_deployment.ray_actor_options
        found: str | None = options["runtime_env"]["env_vars"].get(ALLOCATOR)
        return found

    assert told(1) == "expandable_segments:True"
    assert told(0) is None


def test_threads_do_not_spin_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    worker_env.set_here(config)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    worker_env.set_here(config)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert worker_env.waiting() == {"OMP_WAIT_POLICY": "ACTIVE"}
