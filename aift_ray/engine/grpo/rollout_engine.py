"""Generates completions in a process that does not train, with the weights that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from aift_ray.engine.grpo.completion_generation import Completion, CompletionGenerator
from aift_ray.engine.grpo.episode_generation import EpisodeGenerator, Generate, episodes_of
from aift_ray.engine.job import Job
from aift_ray.engine.precision import Precision
from aift_ray.parallel.dtensor_utils import whole
from aift_ray.parallel.group import Group

Weights = dict[str, torch.Tensor]


class Asked(NamedTuple):
    """Prompts that are completed together.

    Attributes:
        prompts: token ids of each.
        keys: for each prompt, one a completion: what its random numbers are drawn by.
        sources: the rows that the prompts are of, with which episodes begin.
    """

    prompts: list[np.ndarray]
    keys: list[list[tuple[int, ...]]]
    sources: list[dict[str, Any]]


class CompletionEngine(Protocol):
    """Generates in a process that does not train."""

    def load(self, weights: Weights) -> None:
        """Take the trained weights, by their names."""

    def generate(self, asked: Asked) -> list[list[Completion]]:
        """Completions of each prompt."""

    def rest(self) -> None:
        """Give a device that it shares with a worker back, until weights are loaded again."""


class RolloutPool(Protocol):
    """Processes that generate."""

    def generate(
        self, weights: Weights, asked: Sequence[Asked]
    ) -> Iterator[tuple[int, list[list[Completion]], float]]:
        """The number of each part with its completions and their seconds, as they are ready.

        Args:
            weights: the trained ones, in host memory.
        """

    def close(self) -> None:
        """End the processes."""


class RolloutEngine:
    """A model of its own, that is never trained.

    Args:
        device: where it computes.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        # imports this package
        from aift_ray.engine.job_model import untrained

        group = Group(0, 1, device)
        self._device, self._precision = device, Precision.resolve(job.config, device)
        self._model: Any = untrained(job, group, self._precision).to(device).eval()
        self._held = dict(self._model.named_parameters())
        how = job.config.grpo
        self._generator = CompletionGenerator(self._model, self._model, how, job.stop_ids, device)
        self._episodes: EpisodeGenerator | None = None
        if how.environment is not None:
            self._episodes = episodes_of(how, job.load_tokenizer(), job.stop_ids)

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Take the trained weights, by their names."""
        for name, value in weights.items():
            self._held[name].copy_(value)

    def generate(self, asked: Asked) -> list[list[Completion]]:
        """Completions of each prompt."""
        with self._precision.autocast(self._device):
            return completed(self._generator.generate, self._episodes, asked)

    def rest(self) -> None:
        """It shares none."""


def engine_of(job: Job, device: torch.device) -> CompletionEngine:
    """The engine of `grpo.engine`, loaded."""
    if job.config.grpo.engine == "vllm":
        # imports vLLM
        from aift_ray.engine.grpo.vllm_rollouts import VllmRolloutEngine

        return VllmRolloutEngine(job, device)
    return RolloutEngine(job, device)


def completed(
    generate: Generate, episodes: EpisodeGenerator | None, asked: Asked
) -> list[list[Completion]]:
    """Completions of the prompts, in the episodes of an environment where there is one."""
    if episodes is None:
        return generate(asked.prompts, asked.keys)
    return episodes.generate(generate, asked.sources, asked.prompts, asked.keys)


def trained_weights(model: torch.nn.Module, kept: bool) -> Weights:
    """Copies of the trained weights in host memory, by name; every worker must call this.

    Args:
        kept: this worker wants them; else it gives its shares alone.
    """
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            all_of_it = whole(weight)
            if kept:
                found[name] = all_of_it.cpu().clone()
    return found
