"""One file a strategy; `wrap` is the only way in, so the loop does not know which is in use."""

from __future__ import annotations

import torch

from aift_ray.parallel import ddp
from aift_ray.parallel.group import Group

_STRATEGIES = {"ddp": ddp.wrap}


def wrap(strategy: str, module: torch.nn.Module, group: Group) -> torch.nn.Module:
    """Spread `module`, whose forward gives a loss, over the workers of `group`."""
    return _STRATEGIES[strategy](module, group)
