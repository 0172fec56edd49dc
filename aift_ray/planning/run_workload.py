"""What a worker of a configured run does, as far as its memory depends on it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from aift_ray.config import RunConfig, deepspeed_config
from aift_ray.planning.candidates import Candidate
from aift_ray.planning.memory_parts import Workload
from aift_ray.planning.model_shape import Shape


class Answers(NamedTuple):
    """Answers that are generated at once.

    Attributes:
        rows: answered greedily.
        asked: tokens of their prompts.
        tokens: of prompts and answers, whose keys and values are kept.
    """

    rows: int
    asked: int
    tokens: int


def answers_of(
    config: RunConfig,
    workers: int,
    asked: int | None = None,
    longest: int | None = None,
    batched: bool = True,
) -> Answers:
    """What a worker generates at once in an evaluation.

    Args:
        asked: rows that are answered, and
        longest: tokens of the longest of them, where they are known.
        batched: whether several rows are answered together.
    """
    training, length = config.training, config.data.sequence_length
    if config.objective == "grpo":
        return Answers(0, 0, _completions(config) * length)
    asked = training.exact_match_rows if asked is None else asked
    replicas = max(1, workers // config.parallel.model_parallel_size)
    rows = min(-(-asked // replicas), training.exact_match_batch_size if batched else 1)
    prompts = rows * (length if longest is None else longest)
    made = Answers(rows, prompts, prompts + rows * training.exact_match_max_tokens)
    if not config.evaluation.tasks:
        return made
    # prompts of tasks are of no known length here; most are shorter than a training row
    of_tasks = config.evaluation.batch_size * length
    return Answers(made.rows, made.asked, max(made.tokens, of_tasks))


def workload(
    config: RunConfig,
    way: Candidate,
    shape: Shape,
    tokens: int,
    workers: int,
    width: int,
    whole: int,
    answers: Answers,
    gpu: bool,
    process: int = 0,
    targets: int | None = None,
    saves_beside: bool = True,
) -> Workload:
    """A worker's work, with the model spread as `way` has it.

    Args:
        tokens: of the longest micro-batch, of all workers that divide its rows.
        width: bytes of a weight that is not trained.
        whole, process, targets, saves_beside: as of a `Workload`.
        gpu: whether it computes on one.
    """
    training, divided = config.training, config.parallel.context_parallel_size
    bits, devices = (config.base_bits or 4) if way.method == "qlora" else None, _devices(config)
    work = Workload(
        "full" if way.method == "full" else "lora",
        config.lora.r,
        -(-tokens // divided),
        width,
        training.gradient_checkpointing,
        bits,
        way.strategy,
        workers,
        whole,
        way.stages or config.parallel.model_parallel_size,
        way.offload or bool(way.strategy.startswith("zero") and devices),
        training.optimizer,
        dropout=config.lora.lora_dropout > 0,
        gpu=gpu,
        copies=(gpu or process > 0) and training.async_save,
        saves_beside=saves_beside,
        answer_tokens=answers.tokens,
        asked_tokens=answers.asked,
        answers=answers.rows,
        completions=_completions(config),
        engine=config.generates_in_turn * shape.weight_bytes(width, bits),
        process=process,
        # a model with a score makes no logits
        targets=0 if config.objective == "reward" else targets,
        row_tokens=tokens if divided > 1 else 0,
        reference=config.grpo.beta > 0 and way.method == "full",
        by_deepspeed=config.parallel.by_deepspeed and way.strategy.startswith("zero"),
        devices=devices,
        rounded=training.bf16_stochastic_round and way.method == "full",
        selective=training.activation_checkpointing == "selective",
        activations_in_host=training.activation_offloading,
    )
    return _with_sizes(work, config)


def _completions(config: RunConfig) -> int:
    """Completions that a worker which trains generates together."""
    generates = config.objective == "grpo" and config.grpo.placement == "colocated"
    return config.grpo.rollout_batch_size if generates else 0


def _devices(config: RunConfig) -> tuple[str, str] | None:
    """Where DeepSpeed keeps the optimizer state and the weights; None: where it computes."""
    kept = deepspeed_config.offloaded(config.parallel)
    names = deepspeed_config.OPTIMIZER, deepspeed_config.PARAM
    optimizer, weights = (str(kept.get(n, {}).get("device", "none")) for n in names)
    return (optimizer, weights) if kept else None


def _with_sizes(work: Workload, config: RunConfig) -> Workload:
    """With the sizes that a DeepSpeed file gives."""
    given = deepspeed_config.zero_options(config.parallel)
    live = int(given.get("stage3_max_live_parameters", work.live))
    return replace(work, live=live, bucket=given.get("reduce_bucket_size"))
