"""Weights held in 8 or 4 bits by bitsandbytes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from aift_ray.errors import ModelError, Problem

_LINEAR = {4: "Linear4bit", 8: "Linear8bitLt"}


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of the decoder blocks are held.

    Attributes:
        bits: 4 or 8.
        compute_dtype: of the products of 4-bit layers.
        kind, double: of 4 bits: the number format; whether the scales are quantized too.
        threshold: of 8 bits: inputs above it are multiplied in 16 bits.
        fp16_weight: of 8 bits: 16-bit weights are kept too (for training; GPUs only).
        cpu_offload: of 8 bits: what does not fit the GPU stays in the host, in fp32.
    """

    bits: Literal[4, 8]
    compute_dtype: torch.dtype = torch.float32
    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    threshold: float = 6.0
    fp16_weight: bool = False
    cpu_offload: bool = False

    def config(self) -> BitsAndBytesConfig:
        """As `from_pretrained` takes it."""
        if self.bits == 8:
            return BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=self.threshold,
                llm_int8_has_fp16_weight=self.fp16_weight,
                llm_int8_enable_fp32_cpu_offload=self.cpu_offload,
            )
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=self.compute_dtype,
        )


def layers(model: torch.nn.Module, bits: int) -> list[torch.nn.Module]:
    """The layers of `model` that are held in `bits` bits."""
    # PEFT's wrapper of such a layer bears the same name
    named = (m for m in model.modules() if type(m).__name__ == _LINEAR[bits])
    return [m for m in named if not hasattr(m, "base_layer")]


def settle(model: PreTrainedModel, location: str, bits: int) -> None:
    """Make freshly loaded quantized weights safe to train and to save.

    Raises:
        ModelError: nothing was quantized.
    """
    # it says for each call of each layer that its input is cast to 16 bits
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    found = layers(model, bits)
    if not found:
        what = f"no layer could be held in {bits} bits"
        raise ModelError([Problem(f"model {location}", what, "load it without quantization")])
    for layer in found:
        # on CPUs with AVX512-BF16 the first evaluation would repack the weights in place: they
        # could neither be trained nor saved after it
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.__dict__["support_avx512bf16_for_cpu"] = False
