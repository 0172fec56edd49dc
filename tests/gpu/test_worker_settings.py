"""What workers on GPUs are given in their environment, and what a machine has: on a real GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aift_ray.config import ServeConfig, ServingConfig
from aift_ray.errors import ConfigError
from aift_ray.planning.gpu_specs import of_name
from aift_ray.planning.measured_rates import keep, kept
from aift_ray.ray_backend.replica_gpus import gpus_here, gpus_of
from aift_ray.runs import worker_env
from aift_ray.utils import bench
from tests.conftest import ROOT

# of no power of two, as shares of large models
SIZE, NUMBER = 40 * 2**20 + 4096, 4
PINS = f"""
import json, torch
held = [torch.empty({SIZE}, dtype=torch.uint8, pin_memory=True) for _ in range({NUMBER})]
print(json.dumps(torch.cuda.host_memory_stats()["allocated_bytes.current"]))
"""
# a product that torch 2.13 gives to Triton where it may
OUTER = """
import torch
a, b = (torch.randn(shape, device="cuda").bfloat16() for shape in ((8, 64, 1), (8, 1, 64)))
assert torch.equal(torch.bmm(a, b), a * b)
print("true")
"""


def computed(code: str, **variables: str) -> object:
    """What a new process prints that has these variables too."""
    environment = {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k} | variables
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pinned_memory_takes_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    asked = SIZE * NUMBER
    assert computed(PINS, **worker_env.on_gpus(offload=True)) == pytest.approx(asked, rel=0.01)
    rounded = computed(PINS, **worker_env.on_gpus(offload=False))
    assert rounded == 64 * 2**20 * NUMBER, "else each block takes the next power of two"


def test_without_a_compiler_products_have_another_way(tmp_path: Path) -> None:
    hidden = {"PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path), "CC": "", "CXX": ""}
    assert computed(OUTER, TORCH_DISABLE_NATIVE_JIT="1", **hidden) is True


def test_more_replicas_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    there = torch.cuda.device_count()
    one_each = ServeConfig(serving=ServingConfig(num_replicas=str(there)))
    assert gpus_of(one_each, gpus_here()) == 1
    more = ServeConfig(serving=ServingConfig(num_replicas=str(there + 1)))
    with pytest.raises(ConfigError, match=f"need {there + 1}, and there are {there}"):
        gpus_of(more, gpus_here())


def test_what_the_bench_measures_is_below_the_data_sheet_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates = bench.measured(0)
    keep(rates)
    assert kept() == rates
    assert rates.host is not None
    sheet = of_name(rates.name)
    if sheet is None:
        pytest.skip(f"no data sheet of {rates.name} is known")
    assert 0.2 * sheet.tflops < rates.tflops["bf16"] < 1.1 * sheet.tflops
    assert 0.5 * sheet.bandwidth < rates.bandwidth < 1.1 * sheet.bandwidth
    assert 0.1 * sheet.pcie < rates.host
