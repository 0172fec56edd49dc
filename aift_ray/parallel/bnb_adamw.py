"""AdamW of bitsandbytes: moments in 8 bits, or in pages that a full GPU leaves in host memory.

Its moments are saved under the names that torch's AdamW gives them, so that a run goes on with
either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
}
# bitsandbytes' name: torch's; of moments in 8 bits, the largest absolute value of each block too
_SAVED_AS = {
    "state1": "exp_avg",
    "state2": "exp_avg_sq",
    "absmax1": "exp_avg_absmax",
    "absmax2": "exp_avg_sq_absmax",
}
# weights that share a scale
_BLOCK = 256


def build(name: str, groups: list[dict[str, Any]], **how: object) -> torch.optim.Optimizer:
    """The optimizer `name` of the configuration over groups of named weights."""
    # takes time to import, and is not needed by others
    import bitsandbytes.optim

    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, _CLASSES[name])(groups, **how)
    return made


def allocate(optimizer: Any) -> None:
    """Make the moments of all weights, all of them zero."""
    for number, group in enumerate(optimizer.param_groups):
        for place, weight in enumerate(group["params"]):
            optimizer.init_state(group, weight, number, place)


def saved(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A weight's state in torch's names; what codes of 8 bits mean is the same for all weights."""
    moments = {name: state[own] for own, name in _SAVED_AS.items() if own in state}
    return {"step": torch.tensor(float(state["step"])), **moments}


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
                    own[kind].copy_(given[saved_as])


def in_32_bits(moments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A weight's saved moments in fp32, whatever they were saved in."""
    if "exp_avg_absmax" not in moments:
        return moments
    found = {"step": moments["step"]}
    for kind, code in _codes().items():
        codes, scales = moments[kind], moments[f"{kind}_absmax"]
        found[kind] = torch.ops.bitsandbytes.dequantize_blockwise(
            codes, scales, code, _BLOCK, torch.float32
        )
    return found


def _in_8_bits(moments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "exp_avg_absmax" in moments:
        return moments
    found = {"step": moments["step"]}
    for kind, code in _codes().items():
        found[kind], found[f"{kind}_absmax"] = torch.ops.bitsandbytes.quantize_blockwise(
            moments[kind], code, _BLOCK
        )
    return found


def _codes() -> dict[str, torch.Tensor]:
    """What the 256 codes of each moment mean."""
    from bitsandbytes.functional import create_dynamic_map

    return {"exp_avg": create_dynamic_map(signed=True), "exp_avg_sq": create_dynamic_map(False)}
