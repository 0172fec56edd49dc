"""AdamW over the trained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aift_ray.config import TrainingConfig
from aift_ray.parallel import bnb_adamw
from aift_ray.parallel.protocol import FACTOR


def build(model: nn.Module, config: TrainingConfig, ratio: float = 1.0) -> torch.optim.Optimizer:
    """AdamW over the trained weights; norms and biases, which have one dimension, don't decay.

    Args:
        ratio: learning rate of LoRA's B matrices over that of all others.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast = [(n, p) for n, p in trained if ratio != 1 and "lora_B." in n and p.ndim > 1]
    known = {name for name, _ in fast}
    rest = [(n, p) for n, p in trained if n not in known]
    decay = config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [w for w in rest if w[1].ndim > 1], "weight_decay": decay, FACTOR: 1.0},
        {"params": [w for w in rest if w[1].ndim <= 1], "weight_decay": 0.0, FACTOR: 1.0},
        {"params": fast, "weight_decay": decay, FACTOR: ratio},
    ]
    groups = [group for group in groups if group["params"]]
    how: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if config.optimizer != "adamw" or config.bf16_stochastic_round:
        return bnb_adamw.build(config.optimizer, groups, config.seed, **how)
    return torch.optim.AdamW(groups, **how, fused=True)


def allocate(optimizer: torch.optim.Optimizer) -> None:
    """Make the moments that the first step would make, all of them zero.

    Those of a restored optimizer stay as they are.
    """
    if optimizer.state:
        return
    if not isinstance(optimizer, torch.optim.AdamW):
        bnb_adamw.allocate(optimizer)
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            # as AdamW does it, in its fused form
            optimizer.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
            }


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of weights its share of the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR]
