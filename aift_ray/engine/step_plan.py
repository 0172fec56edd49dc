"""Which rows a run trains on, in how many steps; settled before any model is loaded."""

from __future__ import annotations

import numpy as np

from aift_ray.config import RunConfig
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo.rollout_plan import RolloutPlan, plan_rollouts


def split(config: RunConfig, groups: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rows to train on, and of those of the same set to evaluate on.

    Args:
        groups: the group of each training row; rows of one stay together.
        held_out: number of rows of the evaluation files; with any, nothing is split off.
    """
    everything = np.arange(len(groups))
    names, sizes = np.unique(groups, return_counts=True)
    if held_out or not config.data.validation_fraction or len(names) < 2:
        return everything, everything[:0]
    order = np.random.default_rng([config.training.seed, 2**31]).permutation(len(names))
    wanted = max(1, round(len(groups) * config.data.validation_fraction))
    wanted = min(len(groups) - 1, wanted)
    chosen, number = [], 0
    for group in order.tolist():
        if number + sizes[group] <= wanted:
            chosen.append(group)
            number += int(sizes[group])
    # where all groups are larger than what is asked for: the smallest
    chosen = chosen or [int(order[np.argmin(sizes[order])])]
    own = np.isin(groups, names[chosen])
    return everything[~own], everything[own]


def plan_batches(
    config: RunConfig,
    rows: TokenRows,
    indices: np.ndarray,
    global_batch: int,
    length: int,
    packed: bool = True,
    set_of: np.ndarray | None = None,
) -> BatchPlan | RolloutPlan:
    """The steps over `indices` of `rows`.

    Args:
        length: capacity of a filled row, in tokens.
        packed: whether the model takes packed rows; without, none are filled.
        set_of: the set of a mixture that each of `rows` is of; None without a mixture.
    """
    padded = not packed or config.data.packing == "false"
    if config.objective == "grpo":
        return plan_rollouts(config, rows, indices, global_batch, padded)
    targets = rows.num_label_tokens[indices]
    if config.objective == "kto":
        # every second row has the answer to another prompt, which is not trained
        targets[1::2] = 0
    return BatchPlan(
        rows.lengths[indices],
        targets,
        indices,
        config.micro_batch,
        global_batch,
        config.training.seed,
        length if packed and config.data.packing == "fill" else None,
        None if set_of is None else set_of[indices],
        tuple(config.data.mixture),
        1 if config.objective == "sft" else 2,
        config.data.tokens_per_micro_batch,
        padded,
    )


def longest_tokens(
    config: RunConfig, rows: TokenRows, plan: BatchPlan | RolloutPlan, padded: bool
) -> int:
    """Tokens of the longest micro-batch, with its completions, and its padding if `padded`."""
    lengths = rows.lengths[plan.longest_micro_batch()]
    if config.objective == "grpo":
        lengths = lengths + config.grpo.max_completion_length
    return int(len(lengths) * lengths.max() if padded else lengths.sum())


def total_steps(config: RunConfig, plan: BatchPlan | RolloutPlan) -> int:
    """Steps of the whole run."""
    return config.training.max_steps or config.training.num_epochs * plan.steps_per_epoch
