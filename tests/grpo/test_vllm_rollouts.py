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
from tests.conftest import ROOT, SHIPPED
from tests.grpo.rollout_rows import prompts, write, write_rewards
from tests.serving import vllm_environment


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"grpo__placement": "colocated"}, "vllm generates in processes of its own"),
        ({"method": "full"}, "method full has none"),
        ({"method": "qlora"}, "method qlora has none"),
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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 2])
def test_vllm_generates_with_the_adapter_of_each_generation(turns: int, tmp_path: Path) -> None:
    python = vllm_environment.python()
    if python is None:
        pytest.skip("vLLM's environment is not there: make vllm-env")
    conversations = [row for row in prompts(12) if isinstance(row["prompt"], list)]
    rows = write(tmp_path / "rows.jsonl", conversations)
    command = [str(python), "-m", "aift_ray.train", "--objective", "grpo", "--model", str(SHIPPED)]
    command += ["--train-file", str(rows), "--output-dir", str(tmp_path / "run")]
    command += ["--reward", f"{write_rewards(tmp_path)}:digest", "--max-steps", "4"]
    command += ["--grpo.max_completion_length", "32", "--grpo.num_generations", "4"]
    command += ["--training.batch_size", "16", "--training.gradient_accumulation_steps", "1"]
    command += ["--data.sequence_length", "128", "--training.logging_steps", "1"]
    command += ["--training.learning_rate", "2e-2", "--num-workers", "1"]
    command += ["--grpo.engine", "vllm", "--grpo.placement", "apart"]
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
