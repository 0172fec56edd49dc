"""Completions by vLLM in training, in vLLM's own environment, and what it is refused for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.errors import ConfigError
from aift_ray.runs.prepare import prepare
from tests.conftest import ROOT, SHIPPED
from tests.grpo.rollout_rows import prompts, write, write_rewards
from tests.serving import vllm_environment


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "qlora", "lora__qlora_4bit": False}, "can't quantize to 8 bits"),
        ({"lora__use_dora": True}, "matrices of LoRA alone"),
        ({"lora__init_lora_weights": "pissa"}, "pissa changes it"),
        ({"grpo__temperature": 0.5, "grpo__top_k": 5}, "no log-probabilities at a temperature"),
    ],
)
def test_what_vllm_can_not_do_is_refused(
    how: dict[str, Any], said: str, generating: Callable[..., Any]
) -> None:
    vllm = {"grpo__engine": "vllm", "grpo__placement": "apart"}
    with pytest.raises(ConfigError, match=said):
        generating(**(vllm | how))


AGAIN = """
class Again:
    def reset(self, row):
        return None

    def step(self, answer):
        return "もう一度お願いします。"
"""


def test_four_bits_with_vllm_need_a_gpu(generating: Callable[..., Any], tmp_path: Path) -> None:
    config = generating(method="qlora", grpo__engine="vllm")
    with pytest.raises(ConfigError, match="4 bits on GPUs only"):
        prepare(config, tmp_path, 1, False, None)


def interpreter() -> str:
    """Python with vLLM; the test is skipped where there is none."""
    python = vllm_environment.python()
    if python is None:
        pytest.skip("vLLM's environment is not there: make vllm-env")
    return str(python)


@pytest.mark.slow
def test_all_weights_of_full_fine_tuning_reach_vllm(tmp_path: Path) -> None:
    command = [interpreter(), "-m", "tests.grpo.vllm_sync", str(tmp_path)]
    command += [f"model={SHIPPED}", "method=full"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["greedy"]
    assert found["difference"] < 1e-4
    assert found["stale"] > 0.05


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("placement", "turns"), [("apart", 1), ("colocated", 2)])
def test_vllm_generates_with_the_adapter_of_each_generation(
    placement: str, turns: int, tmp_path: Path
) -> None:
    conversations = [row for row in prompts(12) if isinstance(row["prompt"], list)]
    rows = write(tmp_path / "rows.jsonl", conversations)
    command = [
        interpreter(),
        "-m",
        "aift_ray.train",
        "--objective",
        "grpo",
        "--model",
        str(SHIPPED),
    ]
    command += ["--train-file", str(rows), "--output-dir", str(tmp_path / "run")]
    command += ["--reward", f"{write_rewards(tmp_path)}:digest", "--max-steps", "4"]
    command += ["--grpo.max_completion_length", "32", "--grpo.num_generations", "4"]
    command += ["--training.batch_size", "16", "--training.gradient_accumulation_steps", "1"]
    command += ["--data.sequence_length", "128", "--training.logging_steps", "1"]
    command += ["--training.learning_rate", "2e-2", "--num-workers", "1"]
    command += ["--grpo.engine", "vllm", "--grpo.placement", placement]
    if turns > 1:
        (tmp_path / "again.py").write_text(AGAIN, "utf-8")
        command += ["--grpo.environment", f"{tmp_path}/again.py:Again", "--grpo.max_turns", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == 4
    # by the trained weights of each step: with those of the step before it is above 0.1
    assert all(line["sampling/sampling_logp_difference/mean"] < 1e-3 for line in lines)
    # another engine; what is trained so fast soon says little
    assert lines[0]["sampling/sampling_logp_difference/mean"] > 0
    assert lines[0]["completions/mean_length"] > 4 * turns
    assert len({line["reward"] for line in lines}) > 1
