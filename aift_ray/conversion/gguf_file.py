"""A model folder to a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

from aift_ray.conversion import gguf_families
from aift_ray.conversion.gguf_families import Family
from aift_ray.conversion.gguf_tensors import Target
from aift_ray.conversion.gguf_types import FILE_TYPES, quantize, types
from aift_ray.conversion.gguf_vocab import Vocabulary
from aift_ray.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# weights that are converted at a time
_PIECE = 2**26


def size(targets: list[Target], kinds: dict[str, GGMLQuantizationType]) -> int:
    """Bytes of the tensors in a file."""
    return sum(_bytes(target.shape, kinds[target.name]) for target in targets)


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block, held = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(held)


def write_model(
    file: Path,
    name: str,
    config: PreTrainedConfig,
    family: Family,
    vocabulary: Vocabulary,
    targets: list[Target],
    outtype: str,
) -> None:
    """Write a model.

    Args:
        name: of the model, for people.
        config: of the language model.

    Raises:
        OSError: it could not be written.
        ModelError: a weight is too large for the type, infinite or NaN.
    """

    def describe(writer: GGUFWriter) -> None:
        writer.add_type(GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[outtype])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        gguf_families.write(writer, config, family)
        vocabulary.write(writer)

    write(file, family, describe, targets, types(targets, outtype))


def write(
    file: Path,
    family: Family,
    describe: Callable[[GGUFWriter], None],
    targets: list[Target],
    kinds: dict[str, GGMLQuantizationType],
) -> None:
    """Write a file: what `describe` adds, then the tensors, each read when its turn comes."""
    writer = GGUFWriter(file, family.name)
    try:
        describe(writer)
        for target in targets:
            kind, shape = kinds[target.name], target.shape
            # of blocks the writer takes the shape in bytes
            block, held = GGML_QUANT_SIZES[kind]
            in_bytes = (*shape[:-1], shape[-1] // block * held)
            size = _bytes(shape, kind)
            writer.add_tensor_info(target.name, in_bytes, np.dtype(np.uint8), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for target in targets:
            writer.write_tensor_data(values(target, kinds[target.name]))
    finally:
        writer.close()


def values(target: Target, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The bytes of a tensor.

    Raises:
        ModelError: a weight is too large for the type, infinite or NaN.
    """
    tensor = target.read()
    flat = tensor.reshape(-1, tensor.shape[-1])
    rows = max(1, _PIECE // flat.shape[-1])
    pieces = [quantize(part.float().numpy(), kind) for part in flat.split(rows)]
    for piece, part in zip(pieces, flat.split(rows), strict=True):
        bad = not torch.isfinite(part).all()
        if bad or (piece.dtype == np.float16 and not np.isfinite(piece).all()):
            what = "infinite or NaN" if bad else "too large for 16-bit floats of the type f16"
            remedy = "" if bad else "give --outtype bf16"
            raise ModelError([Problem(f"weight {target.name}", f"it holds values {what}", remedy)])
    return np.concatenate([piece.view(np.uint8).reshape(-1) for piece in pieces])
