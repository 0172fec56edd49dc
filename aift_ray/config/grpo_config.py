"""Settings of reinforcement learning with verifiable rewards; the names are TRL's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from aift_ray.config.section import NotNegative, Positive, Section, memory_size, setting
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.run_config import RunConfig

# settings that change how answers are supervised, and do nothing where answers are generated
_SUPERVISION = ("train_turns", "train_thoughts", "train_end", "on_rewritten_turn", "text_unit")


class GRPOConfig(Section):
    """Reinforcement learning: completions are generated, scored by rewards, and trained."""

    reward: list[str] = setting(
        [],
        "reward functions: a built-in NAME or NAME:option=value, FILE.py:FUNCTION, the folder of "
        "a reward model, or the URL of a judge",
    )
    reward_weights: list[float] | None = setting(
        None, "weights of the rewards, in their order; default: 1 each"
    )
    reward_timeout: float = setting(60.0, "seconds that a reward function may take", gt=0)
    reward_memory: str | None = setting(
        None, "memory of a process that computes rewards, for example 2GB; default: no limit"
    )
    reward_processes: Positive = setting(1, "processes of a worker that compute rewards")
    reward_on_failure: str = setting(
        "error",
        "what a completion gets whose reward fails or takes too long: error stops the run, none "
        "leaves it without this reward, a number is its reward",
    )
    environment: str | None = setting(
        None,
        "what the model talks to over several turns: calculator, or FILE.py:CLASS; default: "
        "completions of one turn",
    )
    max_turns: Positive = setting(4, "with environment: turns of the model in a completion")
    num_generations: Annotated[int, Field(ge=2)] = setting(8, "completions of each prompt")
    num_generations_eval: Positive | None = setting(
        None, "completions of each evaluation prompt; default: num_generations"
    )
    max_completion_length: Positive = setting(256, "tokens of a completion at most")
    rollout_batch_size: Positive = setting(
        64,
        "completions generated together by one worker; results do not depend on the number of "
        "workers, but on this",
    )
    steps_per_generation: Positive | None = setting(
        None,
        "micro-steps trained on the completions of one generation; a multiple of "
        "training.gradient_accumulation_steps, which is the default",
    )
    num_iterations: Positive = setting(1, "times that each completion is trained")
    temperature: float = setting(1.0, "temperature of sampling", gt=0, le=10)
    top_p: float = setting(1.0, "share of the probability that is sampled from", gt=0, le=1)
    top_k: NotNegative = setting(0, "tokens that are sampled from; 0: all")
    min_p: float = setting(
        0.0, "least probability of a token as a share of the likeliest token's", ge=0, le=1
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo"] = setting(
        "dapo",
        "grpo: mean of each completion's mean; dapo: mean over the tokens of the generation; "
        "bnpo: mean over the tokens of the step; dr_grpo: sum over max_completion_length; gspo: "
        "as grpo, with one probability ratio a completion",
    )
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "group",
        "rewards are divided by their standard deviation: of a prompt's completions, of "
        "all, or not",
    )
    beta: float = setting(0.0, "weight of the KL divergence from the reference model", ge=0, le=100)
    use_bias_correction_kl: bool = setting(
        True, "multiply the KL by the probability ratio, so that its gradient is unbiased"
    )
    epsilon: float = setting(0.2, "the probability ratio is clipped below 1 - epsilon", gt=0, lt=1)
    epsilon_high: Annotated[float, Field(gt=0)] | None = setting(
        None, "the ratio is clipped above 1 + epsilon_high; default: epsilon"
    )
    delta: Annotated[float, Field(gt=1)] | None = setting(
        None, "upper bound of the ratio where the advantage is negative; default: none"
    )
    mask_truncated_completions: bool = setting(
        False, "completions that max_completion_length cut are not trained"
    )
    soft_punish_cache: NotNegative = setting(
        0,
        "DAPO's soft overlong punishment: over the last so many tokens of max_completion_length "
        "the reward falls by up to 1; 0: off",
    )
    dynamic_sampling_rounds: NotNegative = setting(
        0,
        "DAPO's dynamic sampling: times that prompts whose rewards are all equal are replaced by "
        "others; 0: off",
    )
    importance_sampling_correction: bool = setting(
        True, "weigh tokens by the ratio of the trained model's probability to the engine's"
    )
    importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = setting(
        "sequence_mask",
        "ratios above importance_sampling_clip_max are clipped, or their tokens masked; by token "
        "or by completion",
    )
    importance_sampling_clip_max: float = setting(3.0, "largest ratio of the correction", gt=1)
    engine: Literal["transformers", "vllm"] = setting(
        "transformers", "engine that generates completions"
    )
    placement: Literal["colocated", "apart"] = setting(
        "colocated",
        "colocated: the workers that train generate; apart: other Ray actors generate, and a step "
        "waits for them",
    )
    rollout_workers: Positive = setting(
        1, "apart: Ray actors that generate, each with a GPU where the workers have one"
    )

    @field_validator("reward_weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        # one flag may hold them all: 1,0.5
        parts = value if isinstance(value, list) else [value] if isinstance(value, str) else None
        if parts is None:
            return value
        texts = [part.split(",") if isinstance(part, str) else [part] for part in parts]
        return [part for split in texts for part in split]

    @field_validator("reward_on_failure", mode="before")
    @classmethod
    def _on_failure(cls, value: Any) -> str:
        text = str(value)
        try:
            if text not in ("error", "none"):
                float(text)
        except ValueError:
            raise ValueError("give error, none or a number") from None
        return text

    @field_validator("reward_memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)

    @property
    def failed_reward(self) -> float | Literal["error", "none"]:
        """`reward_on_failure`, a number where it is one."""
        if self.reward_on_failure == "error":
            return "error"
        return "none" if self.reward_on_failure == "none" else float(self.reward_on_failure)

    @property
    def clip_high(self) -> float:
        """`epsilon_high`, or its default."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def parts(self, accumulation: int) -> int:
        """Optimizer steps that split the completions of one generation."""
        return (self.steps_per_generation or accumulation) // accumulation

    def unused(self) -> Iterator[Problem]:
        """Settings that differ from their defaults, with an objective that generates nothing."""
        for name, field in type(self).model_fields.items():
            if getattr(self, name) != field.get_default(call_default_factory=True):
                what = "acts with objective grpo only"
                yield Problem(f"grpo.{name}", what, "leave it out, or give --objective grpo")

    def contradictions(self, config: RunConfig) -> Iterator[Problem]:
        """What is wrong with a run that generates completions."""
        yield from self._own(config.training.gradient_accumulation_steps)
        yield from self._batches(config)
        yield from self._beside(config)
        for name in _SUPERVISION:
            default = type(config.data).model_fields[name].default
            if getattr(config.data, name) != default:
                what = "changes how answers of rows are trained, and objective grpo generates them"
                yield Problem(f"data.{name}", what, "leave it out")

    def _own(self, accumulation: int) -> Iterator[Problem]:
        if not self.reward:
            what = "no reward is given, and objective grpo trains by rewards"
            yield Problem("grpo.reward", what, "name one: --reward FILE.py:FUNCTION")
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward):
            given = len(self.reward_weights)
            what = f"holds {given} weights, and there are {len(self.reward)} rewards"
            yield Problem("grpo.reward_weights", what, "give one weight a reward, in their order")
        if (self.steps_per_generation or accumulation) % accumulation:
            what = f"{self.steps_per_generation} is no multiple of "
            what += f"training.gradient_accumulation_steps, {accumulation}"
            yield Problem("grpo.steps_per_generation", what, f"give {accumulation} x N")
        if self.soft_punish_cache > self.max_completion_length:
            what = f"{self.soft_punish_cache} exceeds grpo.max_completion_length, "
            what += f"{self.max_completion_length}"
            yield Problem("grpo.soft_punish_cache", what, "give less")
        if self.rollout_batch_size < self.num_generations:
            what = f"{self.rollout_batch_size} holds less than the {self.num_generations} "
            what += "completions of one prompt"
            remedy = f"give --grpo.rollout_batch_size {self.num_generations} or more"
            yield Problem("grpo.rollout_batch_size", what, remedy)
        if not self.importance_sampling_correction:
            for name in ("importance_sampling_mode", "importance_sampling_clip_max"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    what = "does nothing without grpo.importance_sampling_correction"
                    yield Problem(f"grpo.{name}", what, "leave it out")
        if self.environment is None and self.max_turns != 4:
            yield Problem("grpo.max_turns", "acts with grpo.environment only", "leave it out")
        if self.environment is not None and self.placement == "apart":
            what = "apart does not generate with grpo.environment"
            yield Problem("grpo.placement", what, "use --grpo.placement colocated")
        if self.engine == "vllm":
            what = "vllm does not generate in training yet"
            yield Problem("grpo.engine", what, "use --grpo.engine transformers")
        if self.placement == "colocated" and self.rollout_workers != 1:
            what = "acts with grpo.placement apart only"
            yield Problem("grpo.rollout_workers", what, "leave it out")

    def _batches(self, config: RunConfig) -> Iterator[Problem]:
        length, completion = config.data.sequence_length, self.max_completion_length
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
        if units * workers % self.num_generations:
            yield divisible(units * workers, self.num_generations)

    def _beside(self, config: RunConfig) -> Iterator[Problem]:
        """Settings of other sections that can't be combined with generation."""
        training, strategy = config.training, config.parallel.strategy
        if strategy not in ("auto", "ddp"):
            what = f"{strategy} splits the model, and objective grpo generates with a whole one"
            yield Problem("parallel.strategy", what, "use --strategy ddp")
        if self.placement == "apart" and training.local_rank >= 0:
            what = "apart needs Ray, and torchrun starts the workers here"
            yield Problem("grpo.placement", what, "use --grpo.placement colocated")
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
        if (
            config.method != "full"
            and lora.lora_dropout
            and "lora_dropout" in lora.model_fields_set
        ):
            what = f"{lora.lora_dropout:g} trains other probabilities than the generating model's"
            yield Problem("lora.lora_dropout", what, "give --lora.lora_dropout 0, or leave it out")
        if self.beta and config.method != "full":
            changed = lora.init_from or lora.init_lora_weights != "default" or lora.bias != "none"
            if changed:
                what = f"{self.beta:g} measures the KL from the base without adapters, and these "
                what += "adapters start from other weights"
                remedy = "give --grpo.beta 0, or leave lora.init_from, init_lora_weights, bias out"
                yield Problem("grpo.beta", what, remedy)


def divisible(completions: int, generations: int) -> Problem:
    """A step that holds no whole number of prompts."""
    what = f"{generations} does not divide the {completions} completions of a step "
    what += "(training.batch_size x gradient_accumulation_steps x workers)"
    near = max(generations, completions // generations * generations)
    return Problem("grpo.num_generations", what, f"make a step of {near} completions, for example")


def memory_limit(config: Any) -> int | None:
    """Bytes of `reward_memory`."""
    from aift_ray.config.section import memory_bytes

    return None if config.reward_memory is None else memory_bytes(config.reward_memory)
