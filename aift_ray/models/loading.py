"""A model's weights, or its shape without them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.base import get_keys_to_not_convert

from aift_ray.errors import ModelError, Problem
from aift_ray.models import families
from aift_ray.models.attention import NAME, register
from aift_ray.models.catalog import of_family
from aift_ray.models.experts_4bit import pack
from aift_ray.models.folders import explained, load_config
from aift_ray.models.measuring import counted, is_plain
from aift_ray.models.pieces import part_class
from aift_ray.models.quantized import Quantization, settle, stored_bits
from aift_ray.models.shards_4bit import Loading, loading
from aift_ray.models.targets import freeze, left_in_full
from aift_ray.planning.shape import Shape

# of the attention asked of transformers: what computes it
ATTENTION = {
    NAME: "PyTorch's SDPA",
    "eager": "transformers' eager functions",
    "flash_attention_2": "FlashAttention 2",
}


def skeleton(location: str) -> PreTrainedModel:
    """The model of a resolved location without its weights, on the meta device.

    Raises:
        ModelError: of a family without a causal language model, or not to be built.
    """
    config = load_config(location)
    _check_family(config)
    with explained(location), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model


def _check_family(config: Any) -> None:
    kind = config.model_type
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    what = "transformers' AutoModelForCausalLM has no language model of it that stands alone"
    remedy = f"choose a model of another family, such as {of_family(kind)}"
    raise ModelError([Problem(f"model family {kind}", what, remedy)])


def answering_attention(location: str, flash: bool) -> str:
    """The attention asked of transformers for a model that is not trained.

    Args:
        flash: take FlashAttention 2 where the model can be computed with it.
    """
    kind = families.attention_of(load_config(location))
    if not flash or kind != NAME:
        return kind
    made = type(skeleton(location))
    others = getattr(made, "_compatible_flash_implementations", None)
    fits = made._supports_flash_attn and (not others or "flash_attention_2" in others)
    return "flash_attention_2" if fits else kind


def load_model(
    location: str,
    dtype: torch.dtype | None,
    attention: str | None,
    quantization: Quantization | None = None,
    device_map: dict[str, torch.device] | str | None = None,
    only: Collection[str] | None = None,
    shards: Loading | None = None,
) -> PreTrainedModel:
    """The causal language model of a resolved location, on the CPU.

    Args:
        dtype: of its weights; None: as they are stored, which reads none of them from the disk
            before it is used.
        attention: its name; None: the architecture's default.
        quantization: how its linear layers are held; None: in `dtype`, as all else.
        device_map: accelerate's, where it is not to lie on the CPU.
        only: names of the pieces to load, stand-ins for the others; None: all.
        shards: what of 4-bit weights is kept, in host memory, and where they are quantized.

    Raises:
        ModelError: weights missing, unused or corrupt, or an architecture that is not known.
    """
    register()
    options: dict[str, Any] = {}
    if device_map or shards:
        # else transformers puts all of a quantized model on the GPU
        options["device_map"] = device_map or {"": "cpu"}
    config = load_config(location)
    _check_family(config)
    held = stored_bits(config)
    if quantization and held not in (None, quantization.bits):
        what = f"its weights are in {held} bits already, and can't be held in {quantization.bits}"
        raise ModelError([Problem(f"model {location}", what, "load it as it is")])
    if quantization and not held:
        options["quantization_config"] = _of_blocks(location, quantization).config()
    made: Any = AutoModelForCausalLM
    if only is not None:
        whole = skeleton(location)
        made, config = part_class(type(whole), only), whole.config
    with explained(location), loading(shards):
        loaded: Any = made.from_pretrained(
            location,
            config=config,
            dtype=dtype or "auto",
            trust_remote_code=False,
            attn_implementation=_of_language_model(location, config, attention),
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError([Problem(f"model {location}", f"weights are missing: {missing} ...")])
    found: PreTrainedModel = model
    found.get_output_embeddings().register_forward_pre_hook(_in_one_piece)
    bits = quantization.bits if quantization else held
    if quantization and quantization.bits == 4 and quantization.experts:
        pack(found, quantization.kind, quantization.double)
    if bits:
        repack = quantization.repack if quantization else True
        settle(found, location, bits, repack)
    freeze(found)
    return found


def _of_language_model(
    location: str, config: Any, attention: str | None
) -> str | dict[str, str] | None:
    """The attention of the language model alone: towers may not compute by it."""
    if attention is None or config.get_text_config(decoder=True) is config:
        return attention
    # of a wrapper's configuration the class may take the language model's alone
    if type(skeleton(location).config) is not type(config):
        return attention
    return {"": attention, "text_config": attention}


def _of_blocks(location: str, quantization: Quantization) -> Quantization:
    """The same, leaving what is not of the decoder blocks as it is: transformers takes all."""
    whole = skeleton(location)
    usual = get_keys_to_not_convert(whole)
    left = {*usual, *left_in_full(whole)}
    if left == set(usual):
        return quantization
    names = {*left, *quantization.skipped}
    within = {name for name in names for other in names if name.startswith(f"{other}.")}
    return replace(quantization, skipped=tuple(sorted(names - within)))


def weight_bytes(location: str, dtype: torch.dtype, bits: int | None = None) -> int:
    """Computed bytes of the weights of a resolved location.

    Args:
        bits: of the linear layers, where they are to be quantized.
    """
    config = load_config(location)
    shape = Shape.of(config.to_dict()) if is_plain(config) else counted(skeleton(location), {})
    held = stored_bits(config)
    # a folder in 4 bits holds experts as they were
    return shape.weight_bytes(dtype.itemsize, held or bits, experts=not held)


def _in_one_piece(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    # matmul (torch 2.13, `should_fold` in LinearAlgebra.cpp) would copy a frozen output layer once
    # a row for the last positions of prompts, gigabytes with a large vocabulary. It goes by the
    # strides, those of a single row too, which `contiguous()` leaves as they are.
    return (inputs[0].flatten().view(inputs[0].shape),)
