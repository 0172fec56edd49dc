"""Steps on given completions equal those of TRL's GRPOTrainer and RLOOTrainer, for each loss.

Needs an environment with TRL: AIFT_TRL_ENV, or this one with the extra bench.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aift_ray.commandline import validated
from aift_ray.engine import loop
from tests.conftest import ROOT, SHIPPED
from tests.engine.test_against_trl import trl_python
from tests.grpo.rollout_rows import prompts, write, write_rewards
from tests.helpers.runs import started

pytestmark = [pytest.mark.slow]
STEPS, PROMPTS, GENERATIONS = 6, 4, 4
# with a high rate Adam's first step makes other signs of gradients that are nearly zero
RATES = {"lora": 3e-4, "full": 3e-5}
RLOO = {"estimator": "rloo", "loss_type": "rloo"}
# our settings, and TRL's where they have other names
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, {}),
    "bnpo": ({"loss_type": "bnpo"}, {}),
    "gspo": (
        {"loss_type": "gspo", "epsilon": 1e-4, "epsilon_high": 1.3e-4},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    "kl": ({"loss_type": "grpo", "beta": 0.1}, {}),
    "plain_kl": ({"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}, {}),
    # TRL adds a KL by default
    "rloo": (RLOO, {"beta": 0.0}),
    "rloo_kl": ({**RLOO, "beta": 0.1, "epsilon": 3e-4}, {}),
    "rloo_batch": ({**RLOO, "scale_rewards": "batch"}, {"beta": 0.0, "normalize_advantages": True}),
    "delta": ({"loss_type": "dapo", "delta": 1.5, "epsilon": 0.1}, {}),
    "batch": ({"loss_type": "dapo", "scale_rewards": "batch", "temperature": 0.7}, {}),
    "truncated": ({"loss_type": "grpo", "mask_truncated_completions": True}, {}),
    "truncated_dapo": ({"loss_type": "dapo", "mask_truncated_completions": True}, {}),
}
MEASURES = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/reward/mean",
)
# by token; TRL counts a completion's single ratio once
CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def run_trl(spec: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What TRL saw of each step."""
    given, taken = folder / "spec.json", folder / "steps.json"
    given.write_text(json.dumps(spec), "utf-8")
    command = [trl_python(), "-m", "tests.grpo.trl_grpo", str(given), str(taken)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=1200)
    steps: list[dict[str, Any]] = json.loads(taken.read_text("utf-8"))
    return steps


def generation(run: Any) -> dict[str, Any]:
    """The completions that a step trains, in the order of their prompts."""
    rollout = run.rollouts.rollout
    starts = rollout.starts.tolist()
    pairs = list(zip(rollout.ids, starts, strict=True))
    return {
        "prompt_ids": [ids[:start].tolist() for ids, start in pairs],
        "completion_ids": [ids[start:].tolist() for ids, start in pairs],
        "rewards": rollout.scores[:, 0].tolist(),
    }


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("case", CASES)
def test_steps_equal_trl(case: str, method: str, tmp_path: Path) -> None:
    trl_python()
    own, theirs = CASES[case]
    # few tokens are trained, and more gradients are nearly zero
    rate = RATES["full" if case.startswith("truncated") else method]
    if case == "gspo" and method == "full":
        # its gradients are the smallest
        rate = 1e-5
    settings = {"num_generations": GENERATIONS, "max_completion_length": 12, "num_iterations": 2}
    config = validated(
        {
            "model": str(SHIPPED),
            "method": method,
            "objective": "grpo",
            "grpo": {
                **settings,
                **own,
                "reward": [f"{write_rewards(tmp_path)}:digest"],
                "importance_sampling_correction": False,
            },
            "data": {
                "train_files": [str(write(tmp_path / "rows.jsonl", prompts(PROMPTS)))],
                "sequence_length": 128,
            },
            "training": {
                "learning_rate": rate,
                "batch_size": 4,
                "gradient_accumulation_steps": PROMPTS * GENERATIONS // 4,
                "max_steps": STEPS,
                "warmup_steps": 0,
                "lr_scheduler": "constant",
                "weight_decay": 0.0,
                "gradient_checkpointing": False,
            },
        }
    )
    run = started(config, tmp_path)
    spec: dict[str, Any] = {
        "model": str(SHIPPED),
        "stop_ids": run.job.stop_ids,
        "learning_rate": rate,
        "steps": STEPS,
        "trainer": "rloo" if "estimator" in own else "grpo",
        "settings": {**settings, **own, **theirs},
    }
    if "estimator" in own:
        for name in ("estimator", "loss_type", "scale_rewards"):
            spec["settings"].pop(name, None)
    if method == "lora":
        spec["adapter"] = str(tmp_path / "adapter")
        run.module.model.save_pretrained(spec["adapter"])
    lines, generations = [], []
    for step in range(STEPS):
        lines.append(loop.train_step(run)[0])
        if step % 2 == 0:
            generations.append(generation(run))
        run.state.step += 1
    spec["generations"] = generations
    for step, (line, other) in enumerate(zip(lines, run_trl(spec, tmp_path), strict=True)):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-4)
        assert line["grad_norm"] == pytest.approx(float(other["grad_norm"]), rel=1e-4, abs=1e-4)
        if own.get("beta") and (step % 2 == 0 or "estimator" not in own):
            assert line["kl"] == pytest.approx(float(other["kl"]), rel=1e-4, abs=1e-4)
        if "estimator" not in own:
            assert line["entropy"] == pytest.approx(float(other["entropy"]), rel=1e-4)
        for name in CLIPPED if case != "gspo" and "estimator" not in own else ():
            assert line[name] == pytest.approx(float(other[name]), rel=1e-4, abs=1e-4), name
        for name in MEASURES if step % 2 == 0 and case != "batch" else ():
            mine = line[name.replace("rewards/reward", "rewards/digest")]
            assert mine == pytest.approx(float(other[name]), rel=1e-4, abs=1e-4), name
