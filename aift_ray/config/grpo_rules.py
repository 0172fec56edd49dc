"""What can't be combined in a run that generates completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aift_ray.config.grpo_config import GENERATING, GRPOConfig
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.run_config import RunConfig

# settings that change how answers are supervised, and do nothing where answers are generated
_SUPERVISION = ("train_turns", "train_thoughts", "train_end", "on_rewritten_turn", "text_unit")


def contradictions(how: GRPOConfig, config: RunConfig) -> Iterator[Problem]:
    """What is wrong with a run that generates completions."""
    yield from _own(how, config.training.gradient_accumulation_steps)
    yield from _batches(how, config)
    yield from _beside(how, config)
    yield from _engine(how, config)
    for name in _SUPERVISION:
        default = type(config.data).model_fields[name].default
        if getattr(config.data, name) != default:
            what = "changes how answers of rows are trained, and objective grpo generates them"
            yield Problem(f"data.{name}", what, "leave it out")


def _own(how: GRPOConfig, accumulation: int) -> Iterator[Problem]:
    if not how.reward:
        what = "no reward is given, and objective grpo trains by rewards"
        yield Problem("grpo.reward", what, "name one: --reward FILE.py:FUNCTION")
    if how.reward_weights is not None and len(how.reward_weights) != len(how.reward):
        given = len(how.reward_weights)
        what = f"holds {given} weights, and there are {len(how.reward)} rewards"
        yield Problem("grpo.reward_weights", what, "give one weight a reward, in their order")
    if (how.steps_per_generation or accumulation) % accumulation:
        what = f"{how.steps_per_generation} is no multiple of "
        what += f"training.gradient_accumulation_steps, {accumulation}"
        yield Problem("grpo.steps_per_generation", what, f"give {accumulation} x N")
    if how.soft_punish_cache > how.max_completion_length:
        what = f"{how.soft_punish_cache} exceeds grpo.max_completion_length, "
        what += f"{how.max_completion_length}"
        yield Problem("grpo.soft_punish_cache", what, "give less")
    if how.rollout_batch_size < how.num_generations:
        what = f"{how.rollout_batch_size} holds less than the {how.num_generations} "
        what += "completions of one prompt"
        remedy = f"give --grpo.rollout_batch_size {how.num_generations} or more"
        yield Problem("grpo.rollout_batch_size", what, remedy)
    if not how.importance_sampling_correction:
        for name in ("importance_sampling_mode", "importance_sampling_clip_max"):
            if getattr(how, name) != type(how).model_fields[name].default:
                what = "does nothing without grpo.importance_sampling_correction"
                yield Problem(f"grpo.{name}", what, "leave it out")
    yield from _estimator(how)
    if how.environment is None and how.max_turns != 4:
        yield Problem("grpo.max_turns", "acts with grpo.environment only", "leave it out")
    if how.placement == "colocated" and how.rollout_workers != 1:
        what = "acts with grpo.placement apart only"
        yield Problem("grpo.rollout_workers", what, "leave it out")
    if how.placement == "colocated" and how.asynchronous:
        what = "the workers that train generate, and can't do both at once"
        yield Problem("grpo.asynchronous", what, "add --grpo.placement apart")


def _engine(how: GRPOConfig, config: RunConfig) -> Iterator[Problem]:
    """What the engine vllm can't do."""
    if how.engine != "vllm":
        return
    lora, other = config.lora, "use --grpo.engine transformers"
    if config.base_bits == 8:
        what = "vllm can't quantize to 8 bits while it loads"
        yield Problem("grpo.engine", what, f"use --lora.qlora_4bit true, or {other}")
    adapted = config.method != "full"
    if adapted and (lora.use_dora or lora.modules_to_save or lora.bias != "none" or lora.experts):
        what = "vllm takes matrices of LoRA alone, without DoRA, biases, experts and whole layers"
        yield Problem("grpo.engine", what, f"leave these settings out, or {other}")
    elif adapted and lora.init_lora_weights != "default":
        what = f"vllm has the base as published, and {lora.init_lora_weights} changes it"
        yield Problem("grpo.engine", what, f"leave lora.init_lora_weights out, or {other}")
    if how.temperature != 1 and (how.top_p < 1 or how.top_k or how.min_p):
        what = "vllm gives no log-probabilities at a temperature before top_p, top_k and min_p"
        yield Problem("grpo.temperature", what, f"leave it at 1, or {other}")


def _estimator(how: GRPOConfig) -> Iterator[Problem]:
    if how.estimator == "rloo" and how.scale_rewards == "group":
        what = "group divides by the deviation of a prompt's rewards, and rloo does not"
        yield Problem("grpo.scale_rewards", what, "give batch or none")
    if how.estimator == "reinforce_plus_plus" and how.scale_rewards is not None:
        what = "reinforce_plus_plus always normalizes over the tokens of the generation"
        yield Problem("grpo.scale_rewards", what, "leave it out")
    if how.estimator != "grpo" and not how.use_bias_correction_kl:
        what = f"acts on a KL in the loss, and {how.estimator} subtracts it from the rewards"
        yield Problem("grpo.use_bias_correction_kl", what, "leave it out")


def _batches(how: GRPOConfig, config: RunConfig) -> Iterator[Problem]:
    length, completion = config.data.sequence_length, how.max_completion_length
    if length < completion + 2:
        what = f"{completion} leaves no room for a prompt in data.sequence_length, {length}"
        remedy = f"raise --data.sequence_length, or give less than {length - 2}"
        yield Problem("grpo.max_completion_length", what, remedy)
    training = config.training
    units = training.batch_size * training.gradient_accumulation_steps
    number = config.ray.num_workers
    workers = training.world_size if training.ddp else number if isinstance(number, int) else 1
    if number is None and not training.ddp:
        # the number of GPUs settles it
        return
    if units * workers % how.num_generations:
        yield divisible(units * workers, how.num_generations)


def _beside(how: GRPOConfig, config: RunConfig) -> Iterator[Problem]:
    """Settings of other sections that can't be combined with generation."""
    training, strategy = config.training, config.parallel.strategy
    if strategy not in ("auto", *GENERATING):
        what = f"{strategy} divides the model, and objective grpo generates with a whole one"
        remedy = "use --strategy ddp, or fsdp, zero1, zero2 or zero3, which gather the weights"
        yield Problem("parallel.strategy", what, remedy)
    if config.generates_beside and training.local_rank >= 0:
        name = "placement" if config.rollout_actors else "engine"
        what = f"{getattr(how, name)} needs Ray, and torchrun starts the workers here"
        yield Problem(f"grpo.{name}", what, "leave it out, or start the run without torchrun")
    if config.parallel.offload:
        what = "moves weights to host memory, and objective grpo generates with them"
        yield Problem("parallel.offload", what, "leave it off")
    if config.data.packing == "fill":
        what = "fill needs lengths before the run, and completions have none"
        yield Problem("data.packing", what, "use --data.packing concat or false")
    if training.exact_match_rows:
        what = "compares with the answers of rows, and objective grpo has none"
        yield Problem("training.exact_match_rows", what, "use a reward such as exact_match")
    if training.compile:
        what = "compiles for training, and objective grpo generates with the same model"
        yield Problem("training.compile", what, "leave it off")
    if training.neftune_noise_alpha:
        what = "adds noise that the generating model does not have"
        yield Problem("training.neftune_noise_alpha", what, "leave it out")
    lora = config.lora
    if config.method != "full" and lora.lora_dropout and "lora_dropout" in lora.model_fields_set:
        what = f"{lora.lora_dropout:g} trains other probabilities than the generating model's"
        yield Problem("lora.lora_dropout", what, "give --lora.lora_dropout 0, or leave it out")
    if how.beta and config.method != "full":
        changed = lora.init_from or lora.init_lora_weights != "default" or lora.bias != "none"
        if changed:
            what = f"{how.beta:g} measures the KL from the base without adapters, and these "
            what += "adapters start from other weights"
            remedy = "give --grpo.beta 0, or leave lora.init_from, init_lora_weights, bias out"
            yield Problem("grpo.beta", what, remedy)


def divisible(completions: int, generations: int) -> Problem:
    """A step that holds no whole number of prompts."""
    what = f"{generations} does not divide the {completions} completions of a step "
    what += "(training.batch_size x gradient_accumulation_steps x workers)"
    near = max(generations, completions // generations * generations)
    return Problem("grpo.num_generations", what, f"make a step of {near} completions, for example")
