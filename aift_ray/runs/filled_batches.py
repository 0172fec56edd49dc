"""How many tokens a micro-batch is filled with, where each costs transfers to host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from aift_ray.config import RunConfig
from aift_ray.config.preference_config import answers_a_comparison
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.step_plan import longest_tokens
from aift_ray.runs.row_layout import StepLayout

# tokens of a micro-batch at least, where the card holds them
_TOKENS = 4096


def fill(
    config: RunConfig,
    laid: StepLayout,
    rows: TokenRows,
    replicas: int,
    padded: bool,
    fits: Callable[[StepLayout], bool],
) -> tuple[StepLayout, list[str]]:
    """The micro-batches of a run with offload, filled where the user sets no limit; why, in a line.

    Each micro-step moves weights to the card, and waits for gradients that are added in host
    memory, so that few large ones take less time. The steps, and their rows, are the same.

    Args:
        config: gets the number of tokens.
        replicas: workers that see rows of their own.
        padded: whether rows are padded.
        fits: whether the card holds micro-batches of this layout.
    """
    plan, data = laid.plan, config.data
    given = "tokens_per_micro_batch" in data.model_fields_set
    if not config.parallel.offload or given or not isinstance(plan, BatchPlan):
        return laid, []
    before = plan.tokens_per_micro_step(replicas)
    for tokens in _numbers(config):
        filled = replace(plan, tokens=tokens)
        if filled.tokens_per_micro_step(replicas) <= before:
            break
        longest = longest_tokens(config, rows, filled, padded)
        wider = replace(laid, plan=filled, longest=longest, most_targets=filled.most_targets())
        if fits(wider):
            data.tokens_per_micro_batch = tokens
            why = "with offload each micro-step moves weights and gradients between card and host"
            return wider, [f"data.tokens_per_micro_batch is {tokens}: {why}"]
    return laid, []


def _numbers(config: RunConfig) -> Iterator[int]:
    """What `batch_size` rows of full length have, or more, and less by half each time."""
    rows = config.training.batch_size * answers_a_comparison(config.objective)
    tokens = max(rows * config.data.sequence_length, _TOKENS)
    while tokens >= 8:
        yield tokens
        tokens //= 2
