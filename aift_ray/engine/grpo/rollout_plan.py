"""Which prompts make which generation, and which completions make which step.

The prompts of a generation are a function of its number; its completions are dealt to its steps and
workers as rows are elsewhere, once their lengths are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from aift_ray.config import RunConfig
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo.rollout import Rollout
from aift_ray.errors import ConfigError, Problem


@dataclass
class RolloutPlan:
    """The steps of a run that generates; it answers as `BatchPlan` does.

    Attributes:
        prompts: a step of it is a generation: its prompts, whose lengths count a whole completion.
        global_batch: completions a step.
        generations: completions a prompt.
        parts: steps that split the completions of a generation.
        iterations: times that each part is trained.
    """

    prompts: BatchPlan
    global_batch: int
    generations: int
    parts: int
    iterations: int
    _rollout: Rollout | None = None
    _steps: list[BatchPlan] = field(default_factory=list)

    @property
    def indices(self) -> np.ndarray:
        """Token rows of the prompts."""
        return self.prompts.indices

    # what a plan of rows has, of prompts
    together, capacity, mixture = 1, None, None

    @property
    def units(self) -> list[list[int]]:
        """The prompts, each by itself."""
        return self.prompts.units

    @property
    def each(self) -> int:
        """Steps of a generation."""
        return self.parts * self.iterations

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the prompts; the last prompts that fill no generation wait."""
        return len(self.indices) // self.prompts.global_batch * self.each

    def epoch(self, step: int) -> float:
        """Passes over the prompts that are behind after `step` steps."""
        return step / self.steps_per_epoch

    def progress(self, step: int, total_steps: int) -> dict[str, float]:
        """What reward functions are told of a run after `step` steps, by TRL's names."""
        return {"global_step": step, "max_steps": total_steps, "epoch": self.epoch(step)}

    def number(self, step: int) -> int:
        """The generation that a step (from 0) trains."""
        return step // self.each

    def asked(self, number: int) -> list[int]:
        """The token rows of the prompts of a generation, longest first."""
        epoch, at = divmod(number, self.steps_per_epoch // self.each)
        units = self.prompts.global_units(epoch * self.prompts.steps_per_epoch + at)
        return [int(self.indices[row]) for unit in units for row in unit]

    def take(self, rollout: Rollout) -> None:
        """Deal out the completions of a generation."""
        lengths, targets, size = rollout.lengths, rollout.targets, self.generations
        groups = np.arange(len(rollout)).reshape(-1, size)
        self._rollout, self._steps = rollout, []
        # completions of a prompt that are trained together compute it once
        together = math.gcd(size, self.prompts.batch_size) if self.prompts.tokens is None else 1
        for part in range(self.parts):
            rows = groups[part :: self.parts].ravel()
            plan = BatchPlan(
                lengths[rows],
                targets[rows],
                rows,
                self.prompts.batch_size // together,
                len(rows) // together,
                self.prompts.seed,
                together=together,
                tokens=self.prompts.tokens,
                padded=self.prompts.padded,
            )
            self._steps.append(plan)

    def share(self, step: int, rank: int, world: int) -> list[list[int]]:
        """Micro-batches of one worker: numbers of completions; an empty one where none is left."""
        return self._step(step).share(0, rank, world)

    def completions(self, step: int) -> list[int]:
        """The numbers of the completions of a step."""
        return [int(row) for row in self._step(step).indices]

    def step_targets(self, step: int) -> int:
        """Tokens of the completions of a step."""
        return int(self._step(step).targets.sum())

    def step_weight(self, step: int) -> int:
        """What the summed loss is divided by: the weights of the tokens have it in them."""
        return 1

    def longest_micro_batch(self) -> list[int]:
        """Token rows of the prompts of a micro-batch at least as long as any that will come."""
        longest = self.prompts.longest_micro_batch()
        return [row for row in longest for _ in range(self.generations)][: len(longest)]

    def most_targets(self) -> int:
        """Tokens of completions that a micro-batch has at most."""
        return len(self.longest_micro_batch()) * int(self.prompts.targets.max())

    def tokens_per_micro_step(self, world: int) -> float:
        """Tokens of a worker and micro-step at most, on average."""
        return float(self.prompts.lengths.mean()) * self.prompts.batch_size

    def _step(self, step: int) -> BatchPlan:
        assert self._rollout is not None
        assert self._rollout.number == self.number(step)
        return self._steps[step % self.each % self.parts]


def plan_rollouts(
    config: RunConfig, rows: TokenRows, indices: np.ndarray, global_batch: int, padded: bool
) -> RolloutPlan:
    """The steps over the prompts `indices` of `rows`.

    Args:
        global_batch: completions a step.

    Raises:
        ConfigError: there are fewer prompts than a generation takes.
    """
    how, training = config.grpo, config.training
    parts = how.parts(training.gradient_accumulation_steps)
    number = global_batch * parts // how.num_generations
    if len(indices) < number:
        what = f"{len(indices)} prompts are fewer than the {number} of one generation "
        what += f"({global_batch * parts} completions, {how.num_generations} of each)"
        remedy = "give more rows, a smaller --training.batch_size or --training."
        remedy += "gradient_accumulation_steps, or more --grpo.num_generations"
        raise ConfigError([Problem("data.train_files", what, remedy)])
    completion = how.max_completion_length
    prompts = BatchPlan(
        rows.lengths[indices] + completion,
        np.full(len(indices), completion, np.int32),
        indices,
        config.micro_batch,
        number,
        training.seed,
        tokens=config.data.tokens_per_micro_batch,
        padded=padded,
    )
    return RolloutPlan(prompts, global_batch, how.num_generations, parts, how.num_iterations)
