"""Rewards of completions to advantages: how much better each is than the others of its prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aift_ray.config import GRPOConfig

Floats = npt.NDArray[np.float64]
# added to the standard deviation that rewards are divided by
_LEAST = 1e-4


@dataclass(frozen=True)
class Advantages:
    """Rewards and advantages of the completions of a generation.

    Attributes:
        rewards: (completions,), weighed and summed; NaN where no reward function scored.
        values: (completions,), the advantages.
        flat: (prompts,), whether the rewards of a prompt have no spread.
    """

    rewards: Floats
    values: Floats
    flat: npt.NDArray[np.bool_]


def summed(scores: Floats, weights: Floats) -> Floats:
    """The weighed sum of the scores of each completion, (completions,); NaN: none scored it.

    Args:
        scores: (completions, rewards), NaN where a reward function has given none.
        weights: (rewards,).
    """
    total = np.nansum(scores * weights, axis=1)
    total[np.isnan(scores).all(axis=1)] = np.nan
    found: Floats = total
    return found


def overlong(lengths: npt.NDArray[np.int32], how: GRPOConfig) -> Floats:
    """DAPO's soft punishment of long completions, (completions,), between -1 and 0.

    Yu et al. 2025, arXiv:2503.14476, equation 13.
    """
    cache = how.soft_punish_cache
    if not cache:
        return np.zeros(len(lengths))
    start = how.max_completion_length - cache
    found: Floats = -np.clip((lengths - start) / cache, 0.0, 1.0)
    return found


def advantages(rewards: Floats, generations: int, scale: str) -> Advantages:
    """The advantages of completions, `generations` of each prompt one after the other.

    Args:
        scale: group, batch or none.
    """
    groups = rewards.reshape(-1, generations)
    scored = ~np.isnan(groups)
    counts = scored.sum(1)
    means = np.nansum(groups, 1) / np.maximum(counts, 1)
    spread = _deviation(groups, axis=1)
    values = groups - means[:, None]
    if scale == "group":
        values = values / (spread[:, None] + _LEAST)
    elif scale == "batch":
        values = values / (float(_deviation(rewards[None], axis=1)[0]) + _LEAST)
    return Advantages(rewards, np.nan_to_num(values, nan=0.0).ravel(), np.isclose(spread, 0.0))


def _deviation(values: Floats, axis: int) -> Floats:
    """The standard deviation of a sample, as torch's; 0 of fewer than two values."""
    counts = (~np.isnan(values)).sum(axis)
    means = np.nansum(values, axis, keepdims=True) / np.maximum(counts, 1)[:, None]
    squares = np.nansum(np.square(values - means), axis)
    found: Floats = np.sqrt(squares / np.maximum(counts - 1, 1))
    return found
