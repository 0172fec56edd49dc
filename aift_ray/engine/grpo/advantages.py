"""Rewards of completions to advantages of their tokens: how much better each is than expected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aift_ray.config import GRPOConfig

Floats = npt.NDArray[np.float64]
# added to the standard deviation that rewards are divided by, and the least one of tokens
_LEAST = 1e-4


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


def flat(rewards: Floats, generations: int) -> npt.NDArray[np.bool_]:
    """(prompts,), whether the rewards of a prompt have no spread."""
    found: npt.NDArray[np.bool_] = np.isclose(_deviation(rewards.reshape(-1, generations)), 0.0)
    return found


def token_advantages(
    how: GRPOConfig, rewards: Floats, lengths: Sequence[int], kl: Sequence[np.ndarray] | None
) -> list[npt.NDArray[np.float32]]:
    """The advantage of each token of each completion, (tokens,) each.

    Args:
        rewards: (completions,), those of a prompt one after the other; NaN: no advantage.
        lengths: tokens of each completion that the model wrote.
        kl: of each token from the reference, where it lowers the rewards: log-probability by the
            model minus that by the reference.
    """
    if how.estimator == "reinforce_plus_plus":
        return _normalized(how.beta, rewards, lengths, kl)
    if kl is not None:
        # Ahmadian et al. 2024, arXiv:2402.14740: of the whole completion
        rewards = rewards - how.beta * np.array([each.sum(dtype=np.float64) for each in kl])
    values = _grouped(rewards, how.num_generations, how.estimator, how.scaling)
    pairs = zip(values, lengths, strict=True)
    return [np.full(length, value, np.float32) for value, length in pairs]


def _grouped(rewards: Floats, generations: int, estimator: str, scale: str) -> Floats:
    """The advantages of completions within those of their prompt, (completions,)."""
    groups = rewards.reshape(-1, generations)
    counts = (~np.isnan(groups)).sum(1, keepdims=True)
    values = groups - np.nansum(groups, 1, keepdims=True) / np.maximum(counts, 1)
    if estimator == "rloo":
        # minus the mean of the others; one by itself has none
        values = values * np.where(counts > 1, counts / np.maximum(counts - 1, 1), np.nan)
    if scale == "group":
        values = values / (_deviation(groups)[:, None] + _LEAST)
    elif scale == "batch":
        of = values.reshape(1, -1) if estimator == "rloo" else rewards[None]
        values = values / (float(_deviation(of)[0]) + _LEAST)
    found: Floats = np.nan_to_num(values, nan=0.0).ravel()
    return found


def _normalized(
    beta: float, rewards: Floats, lengths: Sequence[int], kl: Sequence[np.ndarray] | None
) -> list[npt.NDArray[np.float32]]:
    """The reward minus the KL of the tokens that follow, normalized over all tokens.

    Hu et al. 2025, arXiv:2501.03262, equations 8 and 9.
    """
    returns = [np.full(length, reward) for reward, length in zip(rewards, lengths, strict=True)]
    if kl is not None:
        # a token's own KL is its reward, and so are those after it
        pairs = zip(returns, kl, strict=True)
        returns = [each - beta * np.cumsum(apart[::-1])[::-1] for each, apart in pairs]
    whole = np.concatenate(returns)
    if np.isnan(whole).all():
        return [np.zeros(length, np.float32) for length in lengths]
    mean, deviation = np.nanmean(whole), max(float(np.nanstd(whole)), _LEAST)
    found = [(each - mean) / deviation for each in returns]
    return [np.nan_to_num(each, nan=0.0).astype(np.float32) for each in found]


def _deviation(values: Floats) -> Floats:
    """The standard deviation of the sample in each row, as torch's; 0 of fewer than two values."""
    counts = (~np.isnan(values)).sum(1)
    means = np.nansum(values, 1, keepdims=True) / np.maximum(counts, 1)[:, None]
    squares = np.nansum(np.square(values - means), 1)
    found: Floats = np.sqrt(squares / np.maximum(counts - 1, 1))
    return found
