"""Two workers generate and train what one does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from tests.grpo.rollout_rows import prompts, write, write_rewards
from tests.grpo.test_grpo_command import environment, steps_of
from tests.helpers.runs import curve, spawn


def narrow(model: Path, folder: Path) -> Path:
    """A model with its weights in bf16."""
    shutil.copytree(model, folder)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one(
    generating: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "lora": {},
        "full, with a reference": {
            "method": "full",
            "grpo__beta": 0.1,
            "grpo__num_iterations": 2,
            "training__learning_rate": 1e-3,
            "training__max_steps": 3,
        },
        "split": {"grpo__steps_per_generation": 8, "grpo__dynamic_sampling_rounds": 1},
        "split, weights sharded": {
            "parallel__strategy": "fsdp",
            "grpo__steps_per_generation": 8,
            "grpo__dynamic_sampling_rounds": 1,
        },
        "full, weights sharded": {
            # as published: in bf16, and trained in fp32
            "model": str(narrow(tiny_model, tmp_path / "narrow")),
            "method": "full",
            "parallel__strategy": "zero3",
            "data__tokens_per_micro_batch": 150,
            "grpo__beta": 0.1,
            "grpo__num_iterations": 2,
            "training__learning_rate": 1e-3,
            "training__max_steps": 3,
        },
        "reinforce_plus_plus, moments sharded": {
            "parallel__strategy": "zero1",
            "grpo__estimator": "reinforce_plus_plus",
            "grpo__beta": 0.1,
        },
    }
    both: dict[str, Any] = {}
    for name, how in ways.items():
        config = generating(training__batch_size=2, lora__lora_dropout=0.0, **how)
        both[name] = config.model_dump(mode="json")
    path = tmp_path / "configs.json"
    path.write_text(json.dumps(both), "utf-8")
    found = spawn(path, 2)
    for name, how in ways.items():
        one = how | {"training__batch_size": 4, "parallel__strategy": "ddp"}
        alone = curve(generating(**one), tmp_path / name)
        np.testing.assert_allclose(found[name], alone, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_workers_and_rollout_actors_change_no_loss(
    strategy: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", prompts(8))
    common = ["--model", str(tiny_model), "--train-file", str(rows), "--objective", "grpo"]
    common += ["--method", "full", "--training.precision", "fp32", "--max-steps", "3"]
    common += ["--reward", f"{write_rewards(tmp_path)}:digest", "--grpo.num_generations", "4"]
    common += ["--grpo.max_completion_length", "8", "--grpo.rollout_batch_size", "4"]
    common += ["--training.learning_rate", "1e-3", "--data.sequence_length", "128"]
    common += ["--training.gradient_accumulation_steps", "1", "--training.logging_steps", "1"]
    apart = ["--grpo.placement", "apart", "--grpo.rollout_workers"]
    ways: dict[str, tuple[int, list[str]]] = {
        "one worker": (1, []),
        "two workers": (2, []),
        "one worker, one actor": (1, [*apart, "1"]),
        "one worker, two actors": (1, [*apart, "2"]),
        "two workers, one actor": (2, [*apart, "1"]),
        "two workers, two actors": (2, [*apart, "2"]),
    }
    found = {}
    for name, (workers, more) in ways.items():
        folder = tmp_path / name.replace(" ", "-")
        how = ["--num-workers", str(workers), "--training.batch_size", str(16 // workers), *more]
        # a worker alone shards nothing; four processes have room on two CPUs
        how += ["--strategy", strategy if workers > 1 else "ddp", "--ray.cpus_per_worker", "0.5"]
        how += ["--output-dir", str(folder)]
        command = [sys.executable, "-m", "aift_ray.train", *common, *how]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[name] = steps_of(folder)
    alone = np.array(found.pop("one worker"), float)
    assert alone[:, 1].any(), "it learns"
    for name, steps in found.items():
        np.testing.assert_allclose(
            np.array(steps, float), alone, rtol=2e-5, atol=2e-6, err_msg=name
        )
