"""llama.cpp's quantizers in the library of the package xllamacpp, read from 2026.10.11549.

Missing: the package publishes llama.cpp's server, not `ggml_quantize_chunk` of its C interface
(ggml.h), which the library exports.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES


@cache
def quantizer() -> Any:
    """`ggml_quantize_chunk`; None where the package is not installed or does not export it."""
    found = importlib.util.find_spec("xllamacpp")
    folders = (found.submodule_search_locations or []) if found else []
    for file in (path for folder in folders for path in Path(folder).glob("xllamacpp*.so")):
        try:
            function = ctypes.CDLL(str(file)).ggml_quantize_chunk
        except (OSError, AttributeError):
            continue
        numbers = [ctypes.c_int64] * 3
        function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *numbers]
        function.argtypes = [*function.argtypes, ctypes.c_void_p]
        function.restype = ctypes.c_size_t
        return function
    return None


def quantize(rows: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Rows of fp32, (n, width), in blocks, (n, bytes of a row)."""
    block, held = GGML_QUANT_SIZES[kind]
    given = np.ascontiguousarray(rows, dtype=np.float32)
    found = np.empty((len(given), given.shape[1] // block * held), np.uint8)
    # without an importance matrix
    quantizer()(int(kind), given.ctypes.data, found.ctypes.data, 0, *given.shape, None)
    return found
