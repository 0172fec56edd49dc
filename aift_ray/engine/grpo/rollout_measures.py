"""What is measured of generated completions, by TRL's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aift_ray.engine.grpo.rollout import Rollout

Measures = dict[str, float | None]


def measures_of(rollout: Rollout, names: Sequence[str], alike: np.ndarray) -> Measures:
    """Of the completions of a generation.

    Args:
        names: of the rewards.
        alike: (prompts,), whether the rewards of a prompt have no spread.
    """
    return {
        "reward": _number(np.nanmean, rollout.rewards),
        "reward_std": _number(_deviation, rollout.rewards),
        "frac_reward_zero_std": float(alike.mean()),
        **by_reward(names, rollout.scores),
        **of_lengths(rollout.targets, rollout.truncated),
    }


def of_lengths(lengths: np.ndarray, truncated: np.ndarray) -> Measures:
    """Of the tokens of completions; of those that ended by themselves None where there are none.

    Args:
        lengths, truncated: (completions,).
    """
    found: Measures = {"completions/clipped_ratio": float(truncated.mean())}
    kinds = {"length": lengths, "terminated_length": lengths[~truncated]}
    for kind, values in kinds.items():
        numbers = values.astype(np.float64)
        found[f"completions/mean_{kind}"] = _number(np.mean, numbers)
        found[f"completions/min_{kind}"] = _number(np.min, numbers)
        found[f"completions/max_{kind}"] = _number(np.max, numbers)
    return found


def by_reward(names: Sequence[str], scores: np.ndarray) -> Measures:
    """Mean and standard deviation of each reward.

    Args:
        scores: (completions, rewards).
    """
    found: Measures = {}
    for name, values in zip(names, scores.T, strict=True):
        found[f"rewards/{name}/mean"] = _number(np.nanmean, values)
        found[f"rewards/{name}/std"] = _number(_deviation, values)
    return found


def _number(of: Callable[..., Any], values: np.ndarray) -> float | None:
    """A statistic of the values that are numbers; None of none."""
    kept = values[~np.isnan(values)]
    return float(of(kept)) if len(kept) else None


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
