"""The learning rate of each step."""

from __future__ import annotations

import math

from aift_ray.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """Learning rate of the step with index `step` (from 0) of `total`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.lr_scheduler == "linear":
        return config.learning_rate * (1 - progress)
    if config.lr_scheduler == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate
