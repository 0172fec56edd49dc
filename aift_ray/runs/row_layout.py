"""How the rows of a run become its steps."""

from __future__ import annotations

from dataclasses import dataclass

from aift_ray.config import RunConfig
from aift_ray.data import token_cache
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.engine import lr_scheduler
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.step_plan import longest_tokens, plan_batches, split, total_steps
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.families.family_support import Support


@dataclass(frozen=True)
class StepLayout:
    """How the rows of a run are laid out.

    Attributes:
        longest: tokens of the longest micro-batch.
        most_targets: supervised tokens that a micro-batch has at most.
        steps: of the whole run.
        rate: the learning rate's schedule, in words.
        held_out: rows to evaluate on.
        answered: rows that an evaluation answers, and tokens of the longest of them.
    """

    plan: BatchPlan | RolloutPlan
    longest: int
    most_targets: int
    steps: int
    rate: str
    held_out: int
    answered: tuple[int, int]


def laid_out(
    config: RunConfig, prepared: token_cache.Prepared, batch: int, support: Support
) -> StepLayout:
    """Which rows make which step, and what follows from that.

    Raises:
        ConfigError: no row can be held out.
    """
    rows, evaluation = prepared.rows("train"), prepared.rows("eval")
    indices, own = split(config, prepared.groups(), len(evaluation))
    _check_split(config, len(evaluation) or len(own))
    most, packs, set_of = prepared.sequence_length, support.packed, prepared.set_of()
    plan = plan_batches(config, rows, indices, batch, most, packs, set_of)
    longest = longest_tokens(config, rows, plan, support.pads(config.data.packing))
    steps = total_steps(config, plan)
    rate = lr_scheduler.settle(config.training, steps, config.method != "full")
    tested = evaluation.lengths if len(evaluation) else rows.lengths[own]
    asked = tested[:: 1 if config.objective == "sft" else 2][: config.training.exact_match_rows]
    answered = len(asked), int(asked.max(initial=0))
    return StepLayout(plan, longest, plan.most_targets(), steps, rate, len(tested), answered)


def _check_split(config: RunConfig, held_out: int) -> None:
    if config.data.validation_fraction and not held_out:
        what = "all training rows are one document, or a group of duplicates: none can be held out"
        remedy = "leave it out, or name evaluation rows with --eval-file"
        raise ConfigError([Problem("data.validation_fraction", what, remedy)])


def global_batch(config: RunConfig, workers: int) -> int:
    """Units of a step."""
    training, replicas = config.training, workers // config.parallel.workers_per_replica
    return training.batch_size * training.gradient_accumulation_steps * replicas
