"""A model's weights, or its shape without them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from aift_ray.errors import ModelError, Problem
from aift_ray.models import wrappers
from aift_ray.models.attention.document_attention import NAME, register
from aift_ray.models.bnb.bnb_layers import Quantization, settle, stored_bits
from aift_ray.models.bnb.experts_4bit import pack
from aift_ray.models.bnb.shards_4bit import Loading, loading
from aift_ray.models.families import family_support
from aift_ray.models.families.sequence_classifier import (
    HEAD,
    RewardHead,
    begin_head,
    scoring_class,
    with_head,
)
from aift_ray.models.hub import check_reach, explained, load_config
from aift_ray.models.lora.target_modules import freeze, left_in_full
from aift_ray.models.model_stats import counted, is_plain
from aift_ray.models.split import part_class
from aift_ray.models.transformers_compat import from_config, takes_flash_attention
from aift_ray.planning.model_shape import Shape

# of the attention asked of transformers: what computes it
ATTENTION = {
    NAME: "PyTorch's SDPA",
    "eager": "transformers' eager functions",
    "flash_attention_2": "FlashAttention 2",
}


def skeleton(location: str, whole: bool = False) -> PreTrainedModel:
    """The model of a resolved location without its weights, on the meta device.

    Args:
        whole: with its towers for images and sounds; else its language model alone.

    Raises:
        ModelError: of a family without a causal language model, or not to be built.
    """
    # of a reward model too: the blocks are those of the language model
    config = load_config(location, scorer=True)
    with explained(location), torch.device("meta"):
        return built(config, whole)


def built(config: PreTrainedConfig, whole: bool = False, **options: object) -> PreTrainedModel:
    """A model of a configuration, on torch's default device; see `skeleton`."""
    made = wrappers.whole_class(config) if whole else wrappers.language_class(config)
    return from_config(made, config, **options)


def answering_attention(location: str, flash: bool) -> str:
    """The attention asked of transformers for a model that is not trained.

    Args:
        flash: take FlashAttention 2 where the model can be computed with it.
    """
    kind = family_support.attention_of(load_config(location))
    if not flash or kind != NAME:
        return kind
    fits = takes_flash_attention(type(skeleton(location)))
    return "flash_attention_2" if fits else kind


def load_model(
    location: str,
    dtype: torch.dtype | None,
    attention: str | None,
    quantization: Quantization | None = None,
    device_map: dict[str, torch.device] | str | None = None,
    only: Collection[str] | None = None,
    shards: Loading | None = None,
    whole: bool = False,
    weights: str | None = None,
    scored: RewardHead | None = None,
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
        whole: with its towers for images and sounds, where it has some.
        weights: folder of other weights of it, such as those of a checkpoint; None: its own.
        scored: what its output layer is replaced by, for a model that scores texts.

    Raises:
        ModelError: weights missing, unused or corrupt, or an architecture that is not known.
    """
    register()
    options: dict[str, Any] = {}
    if device_map or shards:
        # else transformers puts all of a quantized model on the GPU
        options["device_map"] = device_map or {"": "cpu"}
    config = _config(location, weights, scored is not None)
    held = stored_bits(config)
    if quantization and held not in (None, quantization.bits):
        what = f"its weights are in {held} bits already, and can't be held in {quantization.bits}"
        raise ModelError([Problem(f"model {location}", what, "load it as it is")])
    if quantization and not held:
        of_blocks = _of_blocks(location, quantization, whole)
        if scored:
            of_blocks = replace(of_blocks, skipped=(*of_blocks.skipped, HEAD))
        options["quantization_config"] = of_blocks.config()
    made = wrappers.whole_class(config) if whole else wrappers.language_class(config)
    if scored:
        made, config = scoring_class(config), with_head(config, scored.pad_id)
    if only is not None:
        outline = skeleton(location)
        made, config = part_class(type(outline), only), outline.config
    options["attn_implementation"] = of_language_model(config, attention)
    with loading(shards):
        model = _read(made, weights or location, config, dtype, options, scored)
    _settle(model, location, quantization, held)
    return model


def _config(location: str, weights: str | None, scorer: bool) -> Any:
    """The configuration of a model that is read from a folder of other weights of it."""
    if weights is None or not wrappers.is_wrapper(load_config(location, scorer)):
        return load_config(weights or location, scorer)
    # a folder of the language model alone may not say how it is opened
    config, found = load_config(location), load_config(weights)
    for one in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        one.dtype = found.dtype
    return config


def _read(
    made: type[PreTrainedModel],
    folder: str,
    config: PreTrainedConfig,
    dtype: torch.dtype | None,
    options: dict[str, Any],
    scored: RewardHead | None = None,
) -> PreTrainedModel:
    """The weights of a folder in a model of class `made`; a ModelError where some are missing."""
    check_reach(folder, "weights")
    with explained(folder):
        loaded: Any = made.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    absent = set(info["missing_keys"])
    if scored and any(name.startswith(f"{HEAD}.") for name in absent):
        begin_head(model, scored.seed)
        absent = {name for name in absent if not name.startswith(f"{HEAD}.")}
    if absent:
        missing = ", ".join(sorted(absent)[:3])
        raise ModelError([Problem(f"model {folder}", f"weights are missing: {missing} ...")])
    found: PreTrainedModel = model
    return found


def _settle(
    model: PreTrainedModel, location: str, quantization: Quantization | None, held: int | None
) -> None:
    """Make freshly read weights ready to compute with.

    Args:
        held: bits in which the folder holds the linear layers.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_in_one_piece)
    bits = quantization.bits if quantization else held
    if quantization and quantization.bits == 4 and quantization.experts:
        pack(model, quantization.kind, quantization.double)
    if bits:
        repack = quantization.repack if quantization else True
        settle(model, location, bits, repack)
    freeze(model)


def of_language_model(
    config: PreTrainedConfig, attention: str | None
) -> str | dict[str, str] | None:
    """The attention of the language model alone: towers may not compute by it."""
    text = config.get_text_config(decoder=True)
    if attention is None or text is config or wrappers.taken_out(config):
        return attention
    named = [name for name in config.sub_configs if getattr(config, name, None) is text]
    return {"": attention, **dict.fromkeys(named, attention)}


def _of_blocks(location: str, quantization: Quantization, whole: bool) -> Quantization:
    """The same, leaving what is not of the decoder blocks as it is: transformers takes all."""
    outlines = outlines_of(location, whole)
    usual = {name for one in outlines for name in get_keys_to_not_convert(one)}
    left = usual.union(*map(left_in_full, outlines))
    if len(outlines) == 1 and left == usual:
        return quantization
    names = {*left, *quantization.skipped}
    within = {name for name in names for other in names if name.startswith(f"{other}.")}
    return replace(quantization, skipped=tuple(sorted(names - within)))


def outlines_of(location: str, whole: bool) -> list[PreTrainedModel]:
    """The skeletons under whose names the layers of a quantized folder may be read.

    AutoModelForCausalLM gives those of some wholes other names than the whole has.
    """
    found = [skeleton(location, whole)]
    if whole and wrappers.taken_out(load_config(location)):
        found.append(skeleton(location))
    return found


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
