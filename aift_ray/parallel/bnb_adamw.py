"""AdamW of bitsandbytes: moments in 8 bits, or in pages that a full GPU leaves in host memory.

Its moments are saved under the names that torch's AdamW gives them, whole or as shards, so that a
run goes on with either, under any strategy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from aift_ray.parallel.dtensor_utils import shared_as
from aift_ray.parallel.torch_compat import as_shard

# bitsandbytes' name: torch's; of moments in 8 bits, the largest absolute value of each block too
_SAVED_AS = {
    "state1": "exp_avg",
    "state2": "exp_avg_sq",
    "absmax1": "exp_avg_absmax",
    "absmax2": "exp_avg_sq_absmax",
}
# weights that share a scale
BLOCK = 256
# matrices under this keep moments in 32 bits
_LEAST_IN_8_BITS = 4096


def build(
    name: str, groups: list[dict[str, Any]], seed: int, **how: object
) -> torch.optim.Optimizer:
    """The optimizer `name` of the configuration over groups of named weights.

    Args:
        seed: of the stochastic rounding of weights in bf16.
    """
    # takes time to import, and is not needed by others
    from aift_ray.parallel.shard_adamw import ShardAdamW

    bits = 8 if name.endswith("8bit") else 32
    made: torch.optim.Optimizer = ShardAdamW(groups, bits, name.startswith("paged"), seed, **how)
    return made


def scales_shape(weight: torch.Tensor) -> tuple[int, ...] | None:
    """Shape of the scales of a weight's blocks; None: its moments are kept in 32 bits.

    Blocks are those of the whole weight, and none may lie in two shards. The scales are sharded
    along their first dimension as the weight is.
    """
    if weight.numel() < _LEAST_IN_8_BITS:
        return None
    if not isinstance(weight, DTensor):
        return (-(-weight.numel() // BLOCK),)
    row, workers = math.prod(weight.shape[1:]), weight.device_mesh.size()
    if row % BLOCK == 0:
        return len(weight), row // BLOCK
    even = len(weight) % workers == 0 and weight.numel() // workers % BLOCK == 0
    return (weight.numel() // BLOCK,) if even else None


def allocate(optimizer: Any) -> None:
    """Make the moments of all weights, all of them zero."""
    for number, group in enumerate(optimizer.param_groups):
        for place, weight in enumerate(group["params"]):
            optimizer.init_state(group, weight, number, place)


def saved(state: Mapping[str, Any], weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight's state in torch's names; what codes of 8 bits mean is the same for all weights."""
    moments = {
        name: _as_part(state[own], weight, own) for own, name in _SAVED_AS.items() if own in state
    }
    return {"step": torch.tensor(float(state["step"])), **moments}


def _as_part(moment: torch.Tensor, weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A shard of a moment, or of its scales, as part of the whole; others as they are."""
    if not isinstance(weight, DTensor):
        return moment
    shape = _whole_shape(weight, kind)
    return as_shard(moment.view(-1, *shape[1:]) if moment.numel() else moment, weight, shape)


def _whole_shape(weight: torch.Tensor, kind: str) -> tuple[int, ...]:
    shape = scales_shape(weight) if kind.startswith("absmax") else None
    return shape or tuple(weight.shape)


def restore(optimizer: Any, state: Mapping[str, dict[str, torch.Tensor]]) -> None:
    """Go on from {name of a weight: its saved moments}, in 8 or 32 bits, paged or not."""
    for number, group in enumerate(optimizer.param_groups):
        for place, (name, weight) in enumerate(
            zip(group["param_names"], group["params"], strict=True)
        ):
            if name not in state:
                continue
            # it pages; a state dict would not
            optimizer.init_state(group, weight, number, place)
            own = optimizer.state[weight]
            given = _in_8_bits(state[name]) if "absmax1" in own else in_32_bits(state[name])
            if weight.device.type == "cuda":
                # pages are still being zeroed
                torch.cuda.synchronize(weight.device)
            own["step"] = int(given["step"])
            for kind, saved_as in _SAVED_AS.items():
                if kind in own:
                    whole = given[saved_as].reshape(_whole_shape(weight, kind))
                    own[kind].copy_(shared_as(whole, weight).view_as(own[kind]))


def in_32_bits(moments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A weight's saved moments in fp32, whatever they were saved in."""
    if "exp_avg_absmax" not in moments:
        return moments
    found = {"step": moments["step"]}
    for kind, code in _codes().items():
        codes, scales = moments[kind], moments[f"{kind}_absmax"]
        found[kind] = torch.ops.bitsandbytes.dequantize_blockwise(
            codes, scales.flatten(), code, BLOCK, torch.float32
        )
    return found


def _in_8_bits(moments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "exp_avg_absmax" in moments:
        return moments
    found = {"step": moments["step"]}
    for kind, code in _codes().items():
        found[kind], found[f"{kind}_absmax"] = torch.ops.bitsandbytes.quantize_blockwise(
            moments[kind], code, BLOCK
        )
    return found


def _codes() -> dict[str, torch.Tensor]:
    """What the 256 codes of each moment mean."""
    from bitsandbytes.functional import create_dynamic_map

    return {"exp_avg": create_dynamic_map(signed=True), "exp_avg_sq": create_dynamic_map(False)}
