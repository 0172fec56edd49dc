"""AdamW and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from aift_ray.config import TrainingConfig
from aift_ray.parallel.tensors import shared_like


def build(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trained weights; norms and biases, which have one dimension, don't decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def restore(optimizer: torch.optim.AdamW, saved: dict[str, Any]) -> None:
    """Go on from a saved state, of whole tensors, however the weights are shared out now."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {name: shared_like(value, weights[number]) for name, value in moments.items()}
        for number, moments in saved["state"].items()
    }
    optimizer.load_state_dict(saved | {"state": state})


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
