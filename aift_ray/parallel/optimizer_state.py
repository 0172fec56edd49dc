"""An optimizer's state by the names of weights: the same however the weights are spread."""

from __future__ import annotations

from typing import Any

import torch

from aift_ray.errors import ConfigError, Problem
from aift_ray.parallel import bnb_adamw
from aift_ray.parallel.dtensor_utils import shared_like

# the key of a group of weights that holds its learning rate over that of the run
FACTOR = "factor"


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a run needs to go on: {name of a weight: its moments}, and the groups' factors."""
    state = optimizer.state
    is_torch = isinstance(optimizer, torch.optim.AdamW)
    named = [
        (name, weight)
        for group in optimizer.param_groups
        for name, weight in zip(group["param_names"], group["params"], strict=True)
    ]
    return {
        "state": {
            name: dict(state[weight]) if is_torch else bnb_adamw.saved(state[weight], weight)
            for name, weight in named
            if weight in state
        },
        "factors": [group[FACTOR] for group in optimizer.param_groups],
    }


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Continue from a saved state, of whole tensors, however the weights are spread now.

    Rates and decay stay those of the configuration.

    Raises:
        ConfigError: it was made with other groups of weights.
    """
    check_groups(optimizer, saved)
    now = optimizer.state_dict()
    if not isinstance(optimizer, torch.optim.AdamW):
        bnb_adamw.restore(optimizer, saved["state"])
        return
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {
            kind: shared_like(value, weights[number])
            for kind, value in bnb_adamw.in_32_bits(saved["state"][name]).items()
        }
        for number, name in enumerate(names)
        if name in saved["state"]
    }
    optimizer.load_state_dict(now | {"state": state})


def check_groups(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Raise a ConfigError where a saved state was made with other groups of weights."""
    if len(saved["factors"]) != len(optimizer.param_groups):
        what = "was 1 in the run of the checkpoint and is not now, or the other way round"
        raise ConfigError([Problem("lora.lora_plus_ratio", what, "give it as it was")])
