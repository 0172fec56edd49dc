"""Liger's kernels in Triton's interpreter, on tensors of a CPU.

The interpreter lacks what the kernels ask of a compiler, here in the terms that it knows: numbers
that are given are fp32, as a GPU has them, and two functions of CUDA's library.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

MISSING = "needs liger-kernel and triton: make test-liger"
INSTALLED = bool(find_spec("liger_kernel") and find_spec("triton"))
# Triton looks at it when it is first imported, which other libraries do
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"


@cache
def interpret() -> None:
    """Give the interpreter what the kernels need of a compiler."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    known = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if not isinstance(value, float):
            return known(value)
        handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = converted
    from liger_kernel.ops import geglu, rms_norm

    # looked up when they are called: the interpreter replaces them for each kernel
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)
    geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1
