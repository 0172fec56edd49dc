"""Advantages of tokens, by numbers that are worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aift_ray.config import GRPOConfig
from aift_ray.engine.grpo.advantages import flat, token_advantages

LENGTHS = [1, 2, 1, 3]


def values(rewards: list[float], kl: Any = None, **how: Any) -> list[list[float]]:
    config = GRPOConfig(num_generations=2, **how)
    found = token_advantages(config, np.array(rewards), LENGTHS, kl)
    return [pytest.approx(each.tolist(), abs=1e-6) for each in found]


def test_leave_one_out_compares_with_the_others_of_a_prompt() -> None:
    expected = [[-2.0], [2.0, 2.0], [1.0], [-1.0] * 3]
    assert expected == values([1, 3, 5, 4], estimator="rloo")


def test_the_kl_of_a_completion_lowers_its_reward() -> None:
    kl = [np.ones(1), np.zeros(2), np.zeros(1), np.array([1.0, 2.0, 1.0])]
    # rewards 1 - 0.5, 3, 5, 4 - 2
    expected = [[-2.5], [2.5, 2.5], [3.0], [-3.0] * 3]
    assert expected == values([1, 3, 5, 4], kl, estimator="rloo", beta=0.5)


def test_reinforce_plus_plus_is_normalized_over_tokens() -> None:
    # the tokens have 1, 3 3, 0, 1 1 1: mean 10/7, deviation 1.049781
    expected = [[-0.408248], [1.496910] * 2, [-1.360827], [-0.408248] * 3]
    assert expected == values([1, 3, 0, 1], estimator="reinforce_plus_plus")


def test_a_token_has_the_kl_of_itself_and_of_those_after_it() -> None:
    kl = [np.zeros(1), np.zeros(2), np.zeros(1), np.array([1.0, 0.0, 2.0])]
    # the tokens have 2, 2 2, 2, 2-3 2-2 2-2: mean 1, deviation 8/7 ** 0.5 = 1.195229
    expected = [[0.836660], [0.836660] * 2, [0.836660], [-1.673320, -0.836660, -0.836660]]
    assert expected == values([2, 2, 2, 2], kl, estimator="reinforce_plus_plus", beta=1.0)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus"])
def test_a_completion_without_a_reward_has_no_advantage(estimator: str) -> None:
    found = token_advantages(
        GRPOConfig(num_generations=2, estimator=estimator),  # type: ignore[arg-type]
        np.array([np.nan, 3.0, 1.0, 2.0]),
        LENGTHS,
        None,
    )
    assert found[0].tolist() == [0.0]
    assert all(np.isfinite(each).all() for each in found)


def test_prompts_whose_rewards_are_equal() -> None:
    assert flat(np.array([1.0, 1.0, 0.0, 1.0]), 2).tolist() == [True, False]
