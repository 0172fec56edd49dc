"""What a run that generates needs beside its model, built in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from aift_ray.config import GRPOConfig, RunConfig
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo.completion_source import Leader
from aift_ray.engine.grpo.episode_generation import episodes_of
from aift_ray.engine.grpo.rollout_engine import RolloutPool
from aift_ray.engine.grpo.rollout_evaluation import RolloutEvaluator
from aift_ray.engine.grpo.rollout_maker import RolloutMaker
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.grpo.rollout_report import SAMPLES
from aift_ray.engine.grpo.rollouts import Rollouts
from aift_ray.engine.job import Job
from aift_ray.engine.metrics import keep_until
from aift_ray.engine.precision import Precision
from aift_ray.engine.reference_logprobs import shares_prompts
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel
from aift_ray.rewards import Rewards, RewardSpec, distinct_names, parse
from aift_ray.rewards.memory_limit import memory_limit


def policy_of(config: RunConfig) -> GRPOConfig | None:
    """How generated completions are trained; None where there are none."""
    return config.grpo if config.objective == "grpo" else None


def specs_of(config: GRPOConfig) -> list[RewardSpec]:
    """The rewards of a run, with their weights.

    Raises:
        ConfigError: one is no reward.
    """
    weights = config.reward_weights or [1.0] * len(config.reward)
    return [parse(text, weight) for text, weight in zip(config.reward, weights, strict=True)]


def maker_of(
    job: Job,
    group: Group,
    precision: Precision,
    tokenizer: PreTrainedTokenizerBase,
    pool: Callable[[], RolloutPool | None] | None,
) -> RolloutMaker:
    """Generates and scores completions, with the processes that compute rewards.

    Args:
        pool: starts the processes that generate, where others than the workers do; every worker
            calls it, and worker 0 gets them.
    """
    how, specs = job.config.grpo, specs_of(job.config.grpo)
    rewards = Rewards(
        specs,
        timeout=how.reward_timeout,
        memory=memory_limit(how),
        processes=how.reward_processes,
        on_failure=how.failed_reward,
    )
    weights = np.array([spec.weight for spec in specs])
    names = distinct_names(specs)
    alone = (job.stop_ids, precision, group, job.config.training.seed)
    leader, episodes = None, None
    if job.config.generates_beside:
        leader = Leader(group, pool() if pool else None, job.config.generates_in_turn)
    else:
        episodes = episodes_of(how, tokenizer, job.stop_ids)
    return RolloutMaker(how, rewards, names, weights, tokenizer, *alone, leader, episodes)


def rollouts_of(
    job: Job,
    maker: RolloutMaker,
    plan: RolloutPlan,
    rows: TokenRows,
    kept: dict[str, Any],
    reference: Callable[[], LossModel],
    total_steps: int,
) -> Rollouts:
    """The rollouts of a run.

    Args:
        kept: what the checkpoint that the run goes on from has of them.
        reference: loads the reference model, where it is another one than the trained.
    """
    other = job.config.grpo.beta > 0 and job.config.method == "full"
    layout = (job.padded, job.stop_ids[0], shares_prompts(job))
    return Rollouts(maker, plan, rows, layout, reference() if other else None, kept, total_steps)


def evaluator_of(
    job: Job,
    maker: RolloutMaker,
    progress: Callable[[int], Mapping[str, float]],
    step: int,
    rows: TokenRows,
    indices: np.ndarray,
) -> RolloutEvaluator | None:
    """What evaluates on held-out prompts; None where there are none.

    Args:
        progress: what reward functions are told of the run after some steps.
        step: the steps that are done.
    """
    if not len(indices):
        return None
    if maker.group.is_main_process:
        # a run that goes on evaluates again what came after
        keep_until(job.output / SAMPLES, step)
    return RolloutEvaluator(maker, rows, indices, job.output, progress, step)
