"""Settings of reinforcement learning with verifiable rewards; the names are TRL's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from aift_ray.config.section import NotNegative, Positive, Section, memory_size, setting
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.run_config import RunConfig

# strategies under which a worker can have the whole model, to generate with it
GENERATING = ("ddp", "fsdp", "zero1", "zero2", "zero3")


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
        None,
        "memory of a process that computes rewards, for example 2GB; default: half of the "
        "machine's",
    )
    reward_processes: Positive = setting(1, "processes of a worker that compute rewards")
    reward_on_failure: str = setting(
        "error",
        "what a completion gets whose reward fails or takes too long: error stops the run, none "
        "leaves it without this reward, a number is its reward",
    )
    environment: str | None = setting(
        None,
        "environment that replies to the model over several turns: calculator, or FILE.py:CLASS; "
        "default: none, completions have one turn",
    )
    max_turns: Positive = setting(4, "with environment: turns of the model in a completion")
    num_generations: Annotated[int, Field(ge=2)] = setting(8, "completions of each prompt")
    num_generations_eval: Positive | None = setting(
        None, "completions of each evaluation prompt; default: num_generations"
    )
    max_completion_length: Positive = setting(256, "maximum number of tokens of a completion")
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
    num_iterations: Positive = setting(1, "how many times each completion is trained on")
    temperature: float = setting(1.0, "temperature of sampling", gt=0, le=10)
    top_p: float = setting(
        1.0, "sample from the likeliest tokens that together have this probability", gt=0, le=1
    )
    top_k: NotNegative = setting(0, "sample from this many of the likeliest tokens; 0: from all")
    min_p: float = setting(
        0.0, "minimum probability of a token, as a share of that of the likeliest token", ge=0, le=1
    )
    estimator: Literal["grpo", "rloo", "reinforce_plus_plus"] = setting(
        "grpo",
        "advantages from rewards: grpo: minus the mean of the prompt's completions; rloo: minus "
        "the mean of the prompt's other completions; reinforce_plus_plus: normalized over the "
        "tokens of the generation. The last two subtract the KL from the reward",
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "rloo"] = setting(
        "dapo",
        "grpo: mean of each completion's mean; dapo: mean over the tokens of the generation; "
        "bnpo: mean over the tokens of the step; dr_grpo: sum over max_completion_length; gspo: "
        "as grpo, with one probability ratio a completion; rloo: mean over completions, whose "
        "ratio is the product of their tokens'",
    )
    scale_rewards: Literal["group", "batch", "none"] | None = setting(
        None,
        "advantages are divided by the standard deviation of the rewards of a prompt's "
        "completions, of that of all, or not; default: group, with estimator rloo none",
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
        "colocated: the training workers generate, or with engine vllm Ray actors that take turns "
        "with them on the same CPUs or GPUs; apart: Ray actors on CPUs or GPUs of their own",
    )
    rollout_workers: Positive = setting(
        1, "apart: Ray actors that generate, each with a GPU where the workers have one"
    )
    asynchronous: bool = setting(
        False,
        "apart: while the workers train on one generation, the next is made with the weights "
        "from before that training",
    )

    @field_validator("reward_weights", mode="before")
    @classmethod
    def _weights(cls, value: object) -> object:
        # one flag may hold them all: 1,0.5
        parts = value if isinstance(value, list) else [value] if isinstance(value, str) else None
        if parts is None:
            return value
        texts = [part.split(",") if isinstance(part, str) else [part] for part in parts]
        return [part for split in texts for part in split]

    @field_validator("reward_on_failure", mode="before")
    @classmethod
    def _on_failure(cls, value: object) -> str:
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
    def scaling(self) -> str:
        """`scale_rewards`, or its default."""
        return self.scale_rewards or ("group" if self.estimator == "grpo" else "none")

    @property
    def penalizes_rewards(self) -> bool:
        """Whether the KL lowers the rewards, instead of being a part of the loss."""
        return self.beta > 0 and self.estimator != "grpo"

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
        from aift_ray.config import grpo_rules

        return grpo_rules.contradictions(self, config)
