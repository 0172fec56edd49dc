"""Which rows a run trains on, in how many steps; settled before any model is loaded."""

from __future__ import annotations

import numpy as np

from aift_ray.config import RunConfig
from aift_ray.data.batches import BatchPlan
from aift_ray.data.cache import TokenRows


def split(config: RunConfig, rows: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rows to train on, and of those of the same set to evaluate on.

    Args:
        rows: number of training rows.
        held_out: number of rows of the evaluation files; with any, nothing is split off.
    """
    everything = np.arange(rows)
    if held_out or not config.data.validation_fraction:
        return everything, everything[:0]
    order = np.random.default_rng([config.training.seed, 2**31]).permutation(rows)
    number = min(rows - 1, max(1, round(rows * config.data.validation_fraction)))
    return np.sort(order[number:]), np.sort(order[:number])


def plan_batches(
    config: RunConfig,
    rows: TokenRows,
    indices: np.ndarray,
    global_batch: int,
    length: int,
    packed: bool = True,
) -> BatchPlan:
    """The steps over `indices` of `rows`.

    Args:
        length: capacity of a filled row, in tokens.
        packed: whether the model takes packed rows; without, none are filled.
    """
    return BatchPlan(
        rows.lengths[indices],
        rows.targets[indices],
        indices,
        config.micro_batch,
        global_batch,
        config.training.seed,
        length if packed and config.data.packing == "fill" else None,
    )


def total_steps(config: RunConfig, plan: BatchPlan) -> int:
    """Steps of the whole run."""
    return config.training.max_steps or config.training.num_epochs * plan.steps_per_epoch
