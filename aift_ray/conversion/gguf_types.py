"""Which type each tensor of a GGUF file has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize as quantize_by_gguf

from aift_ray.config.export_config import K_QUANTS
from aift_ray.conversion import xllamacpp_compat
from aift_ray.conversion.gguf_tensors import Target
from aift_ray.errors import Problem

Kind = GGMLQuantizationType
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q3_k_m": LlamaFileType.MOSTLY_Q3_K_M,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
# what is read by every prompt or gives the logits loses most by few bits
_ENDS = ("token_embd.weight", "output.weight")
# what stays in fp32 whatever the type
_EXACT = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight")
# of the types of K-quants what rows get that don't fill blocks of 256, as in llama.cpp
_NARROW = {Kind.Q3_K: Kind.IQ4_NL, Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}
_BY_LLAMA_CPP = {*_NARROW, Kind.IQ4_NL}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def types(targets: list[Target], outtype: str) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor: norms and routers stay in fp32, rows that don't fill blocks f16."""
    choose = _mixed(targets, outtype) if outtype in K_QUANTS else _plain(outtype)
    found = {}
    for target in targets:
        shape = target.shape
        exact = len(shape) < 2 or target.name.endswith(_EXACT)
        kind = Kind.F32 if exact else choose(target.name)
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = _NARROW.get(kind, kind)
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F16
        found[target.name] = kind
    return found


def _plain(outtype: str) -> Callable[[str], GGMLQuantizationType]:
    wanted = Kind[outtype.upper()]
    ends = Kind.Q8_0 if outtype.startswith(("q4", "q5")) else wanted
    return lambda name: ends if name in _ENDS else wanted


def _mixed(targets: list[Target], outtype: str) -> Callable[[str], GGMLQuantizationType]:
    """The types of a mixture of K-quants, as llama.cpp's llama-quantize chooses them.

    Source: `llama_tensor_get_type` in llama.cpp, src/llama-quant.cpp.
    """
    most = Kind[outtype.removesuffix("_m").upper()]
    names = {target.name for target in targets}
    layers = 1 + max(int(found[1]) for name in names if (found := _BLOCK.fullmatch(name)))

    def choose(name: str) -> GGMLQuantizationType:
        if name == "output.weight" or (name in _ENDS and "output.weight" not in names):
            return Kind.Q6_K
        found = _BLOCK.fullmatch(name)
        if found is None or most == Kind.Q6_K:
            return most
        at, part = int(found[1]), found[2]
        more = at < layers // 8 or at >= 7 * layers // 8 or (at - layers // 8) % 3 == 2
        if most == Kind.Q3_K:
            return _of_three_bits(part, at, layers)
        return Kind.Q6_K if part in ("attn_v", "ffn_down", "ffn_down_exps") and more else most

    return choose


def _of_three_bits(part: str, at: int, layers: int) -> GGMLQuantizationType:
    if part == "attn_v":
        return Kind.Q5_K if at < 2 else Kind.Q4_K
    if part in ("ffn_down", "ffn_down_exps"):
        return Kind.Q5_K if at < layers // 16 else Kind.Q4_K
    return Kind.Q4_K if part == "attn_output" else Kind.Q3_K


def missing(outtype: str, field: str) -> list[Problem]:
    """What is not installed for a type."""
    if outtype not in K_QUANTS or xllamacpp_compat.quantizer():
        return []
    what = f"{outtype} is quantized by llama.cpp's own code, which is not installed"
    other = f"llama-quantize MODEL.gguf OUT.gguf {outtype.upper()}"
    remedy = f'pip install "aift-ray[k-quants]"; or write f16 and run llama.cpp\'s {other}'
    return [Problem(field, what, remedy)]


def quantize(rows: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Rows of fp32 in a type."""
    if kind in _BY_LLAMA_CPP:
        return xllamacpp_compat.quantize(rows, kind)
    with np.errstate(over="ignore"):
        found: np.ndarray[Any, Any] = quantize_by_gguf(rows, kind)
    return np.ascontiguousarray(found)
