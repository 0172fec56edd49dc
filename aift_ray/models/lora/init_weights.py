"""LoRA matrices that start from a singular value decomposition instead of zero.

PiSSA (Meng et al. 2024, arXiv:2404.02948) trains the largest singular directions of each weight
and leaves the rest in the base. LoftQ (Li et al. 2023, arXiv:2310.08659) starts from those of
what quantization has lost, so that base and adapter together are nearer to the published model.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from aift_ray.errors import ModelError, Problem
from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.models.linear_layers import is_transposed

# subspace iterations of the randomized decomposition, as PEFT's `pissa_niter_16`
ITERATIONS = 16
_KEPT = "lora_at_the_start"
_PREFIX = "base_model.model."

Weights = dict[str, torch.Tensor]


def keep_start(model: PeftModel) -> None:
    """Remember PiSSA's matrices as they are, which `as_plain_lora` needs."""
    matrices = {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}
    model.__dict__[_KEPT] = {n: p.detach().to("cpu", copy=True) for n, p in matrices.items()}


def as_plain_lora(model: PeftModel, state: Weights | None) -> tuple[Any, Weights | None]:
    """PEFT's configuration and the weights of an adapter that fits the base as published.

    PiSSA has moved s B0 A0 from the base into the adapter: s (B A - B0 A0) is a LoRA adapter of
    twice the rank. Others are as they are.

    Args:
        state: the weights by the names of `model.state_dict()`; None: those that it holds now.
    """
    config: Any = model.peft_config["default"]
    start: Weights | None = model.__dict__.get(_KEPT)
    if start is None:
        return config, state
    weights = dict(state if state is not None else model.state_dict())
    for name, first in start.items():
        now = weights[name].to("cpu", first.dtype)
        weights[name] = (
            torch.cat([now, first]) if ".lora_A." in name else torch.cat([now, -first], 1)
        )
    plain = copy.copy(config)
    plain.r, plain.init_lora_weights = 2 * config.r, True
    # the scale, alpha / r or alpha / sqrt(r), must stay
    plain.lora_alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)
    return plain, weights


@torch.no_grad()
def start_from_what_was_lost(model: PeftModel, location: str) -> None:
    """LoftQ: make each adapter the best approximation of what its layer lost in 4 bits.

    Args:
        model: its base quantized from `location`, a folder with the published weights.

    Raises:
        ModelError: the folder does not hold the weights of an adapted layer as they were.
    """
    published = _Published(location)
    held = {id(layer) for layer in layers(model, 4)}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or id(module.get_base_layer()) not in held:
            continue
        layer: Any = module.get_base_layer()
        now = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        before = published.weight(name.removeprefix(_PREFIX)).to(now)
        lost = (before.T if is_transposed(layer) else before) - now
        left, values, right = torch.svd_lowrank(lost, module.r["default"], niter=ITERATIONS)
        root = (values / module.scaling["default"]).sqrt()
        module.lora_A["default"].weight.data = (right * root).T.contiguous()
        module.lora_B["default"].weight.data = left * root


class _Published:
    """Weights of a model folder by the name of their layer."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._files: dict[str, Any] = {}
        for path in sorted(Path(location).glob("*.safetensors")):
            file: Any = safe_open(path, "pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def weight(self, layer: str) -> torch.Tensor:
        """The matrix of a layer, (out, in); (in, out) of a Conv1D."""
        name = f"{layer}.weight"
        found = self._files[name].get_tensor(name) if name in self._files else None
        if found is None or not found.is_floating_point():
            what = f"does not hold {name} as it was before quantization, which LoftQ needs"
            remedy = "name the model as it was published, or leave lora.init_lora_weights out"
            raise ModelError([Problem(f"model {self._location}", what, remedy)])
        tensor: torch.Tensor = found
        return tensor
