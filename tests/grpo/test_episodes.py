"""Completions of several turns: what is trained of them, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray.errors import ConfigError, RewardError
from tests.conftest import SHIPPED
from tests.grpo.rollout_rows import write
from tests.grpo.test_runs_of_rollouts import rollout_of
from tests.helpers.runs import started, stepped
from tests.helpers.whole_runs import resumed_exactly

OWN = """
class Echo:
    def reset(self, row):
        self.turns = 0
    def step(self, answer):
        self.turns += 1
        return f"{self.turns}回目、{len(answer)}字です。"


class Adds(Echo):
    def reset(self, row):
        super().reset(row)
        return None if "0番目" in str(row) else "more"


class Always(Echo):
    def reset(self, row):
        return "more"


def digest(prompts, completions, **columns):
    for turns in completions:
        assert [t["role"] for t in turns] == ["assistant", "user"] * (len(turns) // 2) + [
            "assistant"
        ] * (len(turns) % 2)
    return [sum(len(t["content"]) for t in turns if t["role"] != "user") for turns in completions]
"""


@pytest.fixture
def talking(generating: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A run with an environment that always replies."""
    own = tmp_path / "own.py"
    own.write_text(OWN, "utf-8")
    questions = [[{"role": "user", "content": f"{n}番目の花は？"}] for n in range(12)]
    rows = write(tmp_path / "asked.jsonl", [{"prompt": each} for each in questions])

    def make(**values: Any) -> Any:
        common = {
            "grpo__environment": f"{own}:Echo",
            "grpo__reward": [f"{own}:digest"],
            "grpo__max_completion_length": 96,
            "grpo__max_turns": 3,
            "data__train_files": [str(rows)],
            # a model that ends its turns
            "model": str(SHIPPED),
        }
        return generating(**(common | values))

    return make


def test_own_tokens_alone_are_trained(talking: Callable[..., Any], tmp_path: Path) -> None:
    config = talking(grpo__temperature=0.3)
    run_of = started(config, tmp_path)
    line = stepped(run_of, 1)[0]
    rollout = rollout_of(run_of)
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    assert any(flags.min() == 0 for flags in rollout.own)
    for index in range(len(rollout)):
        ids, flags = rollout.row(index)
        start = int(rollout.starts[index])
        assert not flags[:start].any()
        own = flags[start:].astype(bool)
        assert len(rollout.engine[index]) == rollout.targets[index] == own.sum()
        # what the environment said is between the turns, and is none of the model's tokens
        shown = tokenizer.decode(ids[start:][~own])
        replies = rollout.texts[index].count("[user]")
        assert shown.count("回目、") == replies
        scaled = np.array(log_probabilities(model, ids, start, 0.3))[own]
        assert rollout.engine[index] == pytest.approx(scaled, abs=1e-4)
    # the trained log-probabilities are of the very tokens that the engine's are of
    assert line["sampling/sampling_logp_difference/mean"] < 1e-4


@torch.no_grad()
def log_probabilities(model: Any, ids: np.ndarray, start: int, temperature: float) -> list[float]:
    """Of the tokens from `start` on, by transformers' own forward, at a temperature."""
    logits = model(torch.tensor(ids)[None].long()).logits[0] / temperature
    logps = logits.log_softmax(-1)
    return [float(logps[at - 1, ids[at]]) for at in range(start, len(ids))]


def test_one_turn_is_a_completion_without_an_environment(
    talking: Callable[..., Any], tmp_path: Path
) -> None:
    run_of = started(talking(grpo__max_turns=1), tmp_path)
    stepped(run_of, 1)
    plain = started(
        talking(grpo__environment=None, grpo__max_turns=4, grpo__reward=["length:min=3"]), tmp_path
    )
    stepped(plain, 1)
    pairs = zip(rollout_of(run_of).ids, rollout_of(plain).ids, strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_a_killed_run_with_an_environment_goes_on_to_the_bit(
    talking: Callable[..., Any], tmp_path: Path
) -> None:
    config = talking(
        training__max_steps=3,
        training__save_steps=1,
        grpo__temperature=0.3,
        grpo__steps_per_generation=8,
    )
    resumed_exactly(config, tmp_path, at=2)


def test_a_text_of_reset_is_refused(talking: Callable[..., Any], tmp_path: Path) -> None:
    config = talking()
    config.grpo.environment = str(config.grpo.environment).replace(":Echo", ":Adds")
    with pytest.raises(RewardError, match="reset returned a text"):
        stepped(started(config, tmp_path), 1)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"grpo__environment": "calculater"}, "did you mean 'calculator'?"),
        ({"grpo__environment": "own.py:Always"}, "grpo.environment: Always: reset returned a text"),
        ({"grpo__environment": None}, "acts with grpo.environment only"),
    ],
)
def test_what_can_not_be_had_with_an_environment(
    talking: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        started(talking(**values), tmp_path)
    assert what in str(caught.value)
