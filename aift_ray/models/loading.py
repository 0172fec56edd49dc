"""A model's weights, or its shape without them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from aift_ray.errors import ModelError, Problem
from aift_ray.models.folders import explained, load_config
from aift_ray.models.quantized import Quantization, settle


def skeleton(location: str) -> PreTrainedModel:
    """The model of a resolved location without its weights, on the meta device."""
    with explained(location), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(location))
        return model


def load_model(
    location: str,
    dtype: torch.dtype,
    attention: str | None,
    quantization: Quantization | None = None,
    device_map: dict[str, torch.device] | str | None = None,
) -> PreTrainedModel:
    """The causal language model of a resolved location, on the CPU.

    Args:
        attention: its name; None: the architecture's default.
        quantization: how its linear layers are held; None: in `dtype`, as all else.
        device_map: accelerate's, where it is not to lie on the CPU.

    Raises:
        ModelError: weights missing, unused or corrupt, or an architecture that is not known.
    """
    options: dict[str, Any] = {}
    if device_map:
        options["device_map"] = device_map
    if quantization:
        options["quantization_config"] = quantization.config()
    with explained(location):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError([Problem(f"model {location}", f"weights are missing: {missing} ...")])
    found: PreTrainedModel = model
    if quantization:
        settle(found, location, quantization.bits, quantization.repack)
    elif getattr(found, "is_loaded_in_4bit", False):
        settle(found, location, 4, repack=True)
    return found
