"""Generates completions in a process that does not train, with the weights that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from aift_ray.engine.grpo.completion_generation import Completion, CompletionGenerator
from aift_ray.engine.job import Job
from aift_ray.engine.precision import Precision
from aift_ray.parallel.group import Group

Weights = dict[str, torch.Tensor]
# prompts that are completed together, and for each prompt one key a completion
Asked = tuple[list[np.ndarray], list[list[tuple[int, ...]]]]


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
        self._generator = CompletionGenerator(self._model, how, job.stop_ids, device)

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Take the trained weights, by their names."""
        for name, value in weights.items():
            self._held[name].copy_(value)

    def generate(self, asked: Asked) -> list[list[Completion]]:
        """Completions of each prompt."""
        with self._precision.autocast(self._device):
            return self._generator.generate(*asked)


def trained_weights(model: torch.nn.Module) -> Weights:
    """Copies of the trained weights in host memory, by name."""
    named = model.named_parameters()
    return {name: w.detach().cpu().clone() for name, w in named if w.requires_grad}
