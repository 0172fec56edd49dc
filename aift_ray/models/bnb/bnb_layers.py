"""Weights held in 8 or 4 bits by bitsandbytes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models.bnb.bnb_compat import unpacked
from aift_ray.models.bnb.experts_4bit import BLOCK, ExpertsConfig
from aift_ray.models.families.refusals import is_llama_like, refusal
from aift_ray.models.linear_layers import features

KINDS = ("nf4", "fp4")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LINEAR = {4: "Linear4bit", 8: "Linear8bitLt"}
# what bitsandbytes' kernel for AVX512-BF16 asks of a weight (rows, columns)
_ROWS, _COLUMNS = 32, 64
# where a layer keeps its scales as they were before it was repacked
_KEPT = "scales_before_repacking"
# where a layer in 8 bits keeps the shape of its input
_SHAPE = "shape_before_flattening"


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
        repack: of 4 bits on CPUs with AVX512-BF16: evaluate with the kernel that a plain
            `from_pretrained` uses, three times as fast; off: with the arithmetic of training.
        skipped: names of further layers that stay as they are.
        experts: of 4 bits: the experts of a mixture are held so too.

    Raises:
        ConfigError: a value that bitsandbytes does not know.
    """

    bits: Literal[4, 8]
    compute_dtype: torch.dtype = torch.float32
    kind: str = "nf4"
    double: bool = True
    threshold: float = 6.0
    fp16_weight: bool = False
    cpu_offload: bool = False
    repack: bool = False
    skipped: tuple[str, ...] = ()
    experts: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.bits not in _LINEAR:
            problems.append(Problem("bits", f"{self.bits!r} is not allowed, expected 8 or 4"))
        if self.kind not in KINDS:
            what = f"{self.kind!r} is not allowed, expected 'nf4' or 'fp4'"
            problems.append(Problem("quant_type", what))
        if self.compute_dtype not in _DTYPES:
            allowed = ", ".join(map(str, _DTYPES))
            what = f"{self.compute_dtype!r} is not allowed, expected one of {allowed}"
            problems.append(Problem("compute_dtype", what))
        if not self.threshold >= 0:
            what = f"{self.threshold!r} is not allowed, expected 0 (off) or more"
            problems.append(Problem("llm_int8_threshold", what))
        if problems:
            raise ConfigError(problems)

    def config(self) -> BitsAndBytesConfig:
        """As `from_pretrained` takes it."""
        skipped = list(self.skipped) or None
        if self.bits == 8:
            return BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=self.threshold,
                llm_int8_has_fp16_weight=self.fp16_weight,
                llm_int8_enable_fp32_cpu_offload=self.cpu_offload,
                llm_int8_skip_modules=skipped,
            )
        kind = ExpertsConfig if self.experts else BitsAndBytesConfig
        return kind(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=self.compute_dtype,
            llm_int8_skip_modules=skipped,
        )

    def unavailable(self, device: torch.device) -> list[Problem]:
        """What it asks for that `device` can't do."""
        if device.type != "cpu":
            return []
        problems = []
        if self.fp16_weight:
            what = "bitsandbytes can't multiply with 16-bit weights kept beside on a CPU"
            problems.append(Problem("llm_int8_has_fp16_weight", what, "leave it off, or use a GPU"))
        if self.cpu_offload:
            what = "moves what a GPU can't hold to the CPU, and here everything is on the CPU"
            remedy = "leave it off: with it on, nothing would be quantized"
            problems.append(Problem("llm_int8_enable_fp32_cpu_offload", what, remedy))
        return problems


def is_held_in(layer: torch.nn.Module, bits: int) -> bool:
    """Whether a layer is held in `bits` bits."""
    # PEFT's wrapper of such a layer bears the same name
    return type(layer).__name__ == _LINEAR[bits] and not hasattr(layer, "base_layer")


def layers(model: torch.nn.Module, bits: int) -> list[torch.nn.Module]:
    """The layers of `model` that are held in `bits` bits."""
    return [m for m in model.modules() if is_held_in(m, bits)]


def stored_bits(config: object) -> int | None:
    """Bits in which a model folder holds its linear layers; None: it is not quantized."""
    stored: Any = getattr(config, "quantization_config", None) or {}
    if not isinstance(stored, dict):
        stored = stored.to_dict()
    return 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None


def unfit_layers(skeleton: PreTrainedModel) -> list[str]:
    """Names of linear layers whose 4-bit form a CPU with AVX512-BF16 can't evaluate."""
    sizes = ((name, features(module)) for name, module in skeleton.named_modules())
    return [name for name, size in sizes if size and (size[1] % _ROWS or size[0] % _COLUMNS)]


def settle(model: PreTrainedModel, location: str, bits: int, repack: bool = False) -> None:
    """Make freshly loaded quantized weights safe to train and to save.

    On CPUs with AVX512-BF16 the first evaluation would repack 4-bit weights in place: they could
    neither be trained nor saved after it.

    Args:
        repack: let them be repacked, and undo it where needed; False: never repack.

    Raises:
        ModelError: nothing was quantized.
    """
    found = layers(model, bits)
    if not found:
        what = f"no layer could be held in {bits} bits"
        layout = f"load {location} without quantization"
        raise ModelError([refusal(model.config.model_type, what, layout, is_llama_like)])
    for layer in found:
        if bits == 8:
            layer.register_forward_pre_hook(_flattened)
            layer.register_forward_hook(_unflattened)
        elif repack:
            # bitsandbytes' own way back rounds the scales
            weight: Any = layer.weight
            layer.__dict__[_KEPT] = copy.copy(weight.quant_state)
            layer.register_forward_pre_hook(_before_forward)
            layer.register_state_dict_pre_hook(_restore)
        elif hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.__dict__["support_avx512bf16_for_cpu"] = False


def cut_4bit(layer: Any, dim: int, mine: slice) -> None:
    """Leave of a layer in 4 bits the rows (`dim` 0) or columns (1) `mine`, with their scales.

    The scales are no longer quantized themselves: 256 of them, which share one, may lie apart.
    Both widths must be multiples of `BLOCK`.
    """
    import bitsandbytes.functional
    from bitsandbytes.nn.modules import Params4bit

    functional: Any = bitsandbytes.functional
    state = layer.weight.quant_state
    rows, columns = state.shape
    scales = state.absmax
    if state.nested:
        scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
    # two weights a byte, row after row
    packed = layer.weight.data.view(rows, columns // 2)
    scales = scales.view(rows, columns // BLOCK)
    if dim == 0:
        packed, scales = packed[mine], scales[mine]
    else:
        packed = packed[:, mine.start // 2 : mine.stop // 2]
        scales = scales[:, mine.start // BLOCK : mine.stop // BLOCK]
    share = functional.QuantState(
        absmax=scales.flatten().clone(),
        shape=torch.Size([packed.shape[0], packed.shape[1] * 2]),
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
    layer.weight = Params4bit(
        packed.reshape(-1, 1).clone(),
        requires_grad=False,
        quant_state=share,
        blocksize=state.blocksize,
        compress_statistics=False,
        quant_type=state.quant_type,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = share


def unpack(model: torch.nn.Module) -> None:
    """Undo what an evaluation has repacked in a model that `settle` allowed to."""
    for layer in layers(model, 4):
        if hasattr(layer, _KEPT):
            _restore(layer)


def _flattened(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    # bitsandbytes takes the second of four dimensions for the last one
    layer.__dict__[_SHAPE] = inputs[0].shape[:-1]
    return (inputs[0].flatten(0, -2), *inputs[1:]) if inputs[0].ndim > 3 else None


def _unflattened(layer: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
    shape = layer.__dict__.pop(_SHAPE)
    return output.unflatten(0, shape) if len(shape) > 2 else None


def _before_forward(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if layer.training or inputs[0].requires_grad:
        _restore(layer)


def _restore(layer: Any, *_: object) -> None:
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        layer.weight.data = unpacked(layer.weight.data, layer.weight.quant_state)
        layer.weight.quant_state = layer.quant_state = copy.copy(getattr(layer, _KEPT))
