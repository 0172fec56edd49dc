"""A run that generates completions: what its steps are made of, and going on after a stop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.grpo.rollout_rows import prompts, write, write_rewards
from tests.helpers.runs import started, stepped
from tests.helpers.whole_runs import Killed, losses, run

Generating = Callable[..., Any]


@torch.no_grad()
def log_probabilities(model: Any, ids: np.ndarray, start: int) -> list[float]:
    """Of the tokens from `start` on, by transformers' own forward."""
    logits = model(torch.tensor(ids)[None].long()).logits[0].log_softmax(-1)
    return [float(logits[at - 1, ids[at]]) for at in range(start, len(ids))]


def rollout_of(run_of: Any) -> Any:
    return run_of.rollouts.rollout


def test_the_engine_samples_by_the_probabilities_of_the_model(
    generating: Generating, tmp_path: Path
) -> None:
    config = generating(grpo__importance_sampling_correction=False)
    run_of = started(config, tmp_path)
    line = stepped(run_of, 1)[0]
    rollout, model = rollout_of(run_of), AutoModelForCausalLM.from_pretrained(config.model).eval()
    assert len(rollout) == 16
    for index in range(len(rollout)):
        wanted = log_probabilities(model, rollout.ids[index], int(rollout.starts[index]))
        assert rollout.engine[index] == pytest.approx(wanted, abs=1e-5)
        assert rollout.truncated[index] == (rollout.ids[index][-1] not in run_of.job.stop_ids)
    assert line["sampling/sampling_logp_difference/mean"] < 1e-5
    assert line["sampling/effective_sample_size"] == pytest.approx(1, abs=1e-5)
    assert line["completions/clipped_ratio"] == pytest.approx(rollout.truncated.mean())


def test_a_completion_does_not_depend_on_those_beside_it(
    generating: Generating, tmp_path: Path
) -> None:
    texts = []
    for size in (4, 16):
        run_of = started(generating(grpo__rollout_batch_size=size), tmp_path)
        stepped(run_of, 1)
        texts.append(rollout_of(run_of).texts)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 8, "they are sampled"


@pytest.mark.parametrize(
    "how",
    [
        {"grpo__top_k": 1},
        pytest.param({"grpo__top_p": 1e-6}, marks=pytest.mark.slow),
        pytest.param({"grpo__min_p": 1.0}, marks=pytest.mark.slow),
        pytest.param({"grpo__temperature": 0.01}, marks=pytest.mark.slow),
    ],
)
def test_sampling_options_that_leave_one_token_are_greedy(
    how: dict[str, Any], generating: Generating, tmp_path: Path
) -> None:
    run_of = started(generating(**how), tmp_path)
    run_of.rollouts.begin(run_of.module, 0)
    rollout = rollout_of(run_of)
    model = AutoModelForCausalLM.from_pretrained(run_of.config.model).eval()
    for index in (0, len(rollout) - 1):
        start, ids = int(rollout.starts[index]), rollout.ids[index]
        with torch.no_grad():
            likeliest = model(torch.tensor(ids)[None].long()).logits[0].argmax(-1)
        assert likeliest[start - 1 : -1].tolist() == ids[start:].tolist()


def test_advantages_of_zero_train_nothing(generating: Generating, tmp_path: Path) -> None:
    reward = f"{write_rewards(tmp_path)}:nothing"
    for loss_type in ("grpo", "dr_grpo", "dapo", "bnpo", "gspo"):
        config = generating(grpo__reward=[reward], grpo__loss_type=loss_type)
        line = stepped(started(config, tmp_path), 1)[0]
        assert line["loss"] == 0
        assert line["grad_norm"] == 0
        assert line["frac_reward_zero_std"] == 1


@pytest.mark.slow
def test_micro_batches_and_packing_change_nothing(generating: Generating, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        {"training__batch_size": 16, "training__gradient_accumulation_steps": 1},
        {"training__batch_size": 2, "training__gradient_accumulation_steps": 8},
        {"data__packing": "false"},
    ]
    for loss_type in ("grpo", "dapo", "gspo"):
        found = [
            stepped(started(generating(grpo__loss_type=loss_type, **way), tmp_path)) for way in ways
        ]
        for lines in found[1:]:
            for one, other in zip(found[0], lines, strict=True):
                for name in ("loss", "grad_norm", "reward"):
                    assert one[name] == pytest.approx(other[name], rel=2e-5, abs=2e-6), name


CASES = {
    "lora": {},
    "the middle of a generation": {
        "grpo__num_iterations": 2,
        "grpo__steps_per_generation": 8,
        "grpo__num_generations": 4,
        "grpo__beta": 0.1,
        "training__batch_size": 4,
        "training__gradient_accumulation_steps": 4,
        "grpo__loss_type": "gspo",
    },
    "full, with a reference": {
        "method": "full",
        "grpo__beta": 0.1,
        "training__learning_rate": 1e-3,
    },
}


FAST = {("lora", 3), ("the middle of a generation", 1)}


@pytest.mark.parametrize(
    ("case", "kill_at"),
    [
        pytest.param(case, at, marks=[pytest.mark.slow] * ((case, at) not in FAST))
        for case in CASES
        for at in (1, 3)
    ],
)
def test_a_killed_run_goes_on_to_the_bit(
    case: str, kill_at: int, generating: Generating, tmp_path: Path
) -> None:
    config = generating(
        **CASES[case],
        data__eval_files=[str(write(tmp_path / "eval.jsonl", prompts(4, 50)))],
        training__max_steps=5,
        training__save_steps=1,
        training__eval_steps=2,
    )
    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", kill_at=kill_at)
    run(config.model_copy(update={"resume": "latest"}), tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("samples.jsonl", "metrics.jsonl"):
        whole, killed = (_kept(tmp_path / folder / name) for folder in ("whole", "killed"))
        assert whole == killed


def _kept(file: Path) -> list[dict[str, Any]]:
    """The lines of a file but for times."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith("time") and k != "tokens_per_second"}
        for line in lines
    ]


def test_truncated_completions_can_be_left_out(generating: Generating, tmp_path: Path) -> None:
    run_of = started(generating(grpo__mask_truncated_completions=True), tmp_path)
    stepped(run_of, 1)
    rollout, weights = rollout_of(run_of), run_of.rollouts._weights
    assert rollout.truncated.any()
    assert (weights[rollout.truncated] == 0).all()
    if not rollout.truncated.all():
        assert (weights * rollout.targets).sum() == pytest.approx(1)


def test_prompts_without_spread_are_replaced(generating: Generating, tmp_path: Path) -> None:
    reward = tmp_path / "rare.py"
    # only prompts of a few rows have spread
    reward.write_text(
        "def rare(prompts, completions, answer, **columns):\n"
        "    return [float(hash(str(c)) % 97) if int(a) < 5 else 1.0 "
        "for c, a in zip(completions, answer)]\n",
        "utf-8",
    )
    lines = {}
    for rounds in (0, 3):
        config = generating(grpo__reward=[f"{reward}:rare"], grpo__dynamic_sampling_rounds=rounds)
        run_of = started(config, tmp_path)
        lines[rounds] = stepped(run_of, 1)[0]
        asked = rollout_of(run_of).prompts.reshape(-1, 4)
        assert (asked == asked[:, :1]).all()
        assert len(set(asked[:, 0].tolist())) == 4, "no prompt comes twice"
    assert lines[3]["frac_reward_zero_std"] < lines[0]["frac_reward_zero_std"]
    assert lines[3]["dynamic_sampling/replaced"] > 0


def test_long_completions_are_punished_softly(generating: Generating, tmp_path: Path) -> None:
    reward = f"{write_rewards(tmp_path)}:nothing"
    config = generating(grpo__reward=[reward], grpo__soft_punish_cache=4)
    run_of = started(config, tmp_path)
    run_of.rollouts.begin(run_of.module, 0)
    rollout = rollout_of(run_of)
    for length, given in zip(rollout.targets, rollout.rewards, strict=True):
        assert given == pytest.approx(-min(1, max(0, (length - 4) / 4)))


def test_rewards_are_weighed_and_none_leaves_one_out(
    generating: Generating, tmp_path: Path
) -> None:
    more = tmp_path / "more.py"
    more.write_text(
        "def half(prompts, completions, **columns):\n"
        "    return [1.0 if i % 2 else None for i in range(len(completions))]\n",
        "utf-8",
    )
    rewards = [f"{write_rewards(tmp_path)}:digest", f"{more}:half"]
    config = generating(grpo__reward=rewards, grpo__reward_weights=[2.0, 0.5])
    run_of = started(config, tmp_path)
    line = stepped(run_of, 1)[0]
    rollout = rollout_of(run_of)
    assert np.isnan(rollout.scores[:, 1]).sum() == 8
    other = np.nan_to_num(rollout.scores[:, 1])
    assert rollout.rewards == pytest.approx(2 * rollout.scores[:, 0] + 0.5 * other)
    assert line["rewards/half/mean"] == 1
    assert not math.isnan(line["loss"])
