"""Liger's Triton kernels, read from liger-kernel 0.8.5, and the code of transformers they replace.

Missing: Liger's public functions replace classes of transformers for a whole process, and pass
over what is already built; its operations are not in its documentation.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import Tensor
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama

ROTATE = "apply_rotary_pos_emb"


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    """The norm of `x` by its last dimension, times `weight` + `offset`."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # in place it would overwrite the gradient of the output
    found: Tensor = LigerRMSNormFunction.apply(x, weight, eps, offset, casting, False)
    return found


def gated(gate: Tensor, up: Tensor, silu: bool) -> Tensor:
    """SiLU, or GELU by tanh, of `gate`, times `up`."""
    if silu:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Gate
    else:
        from liger_kernel.ops.geglu import LigerGELUMulFunction as Gate
    found: Tensor = Gate.apply(gate, up)
    return found


def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (batch, heads, tokens, size) with rotary embeddings, in their own memory."""
    from liger_kernel.ops.rope import LigerRopeFunction

    found: tuple[Tensor, Tensor] = LigerRopeFunction.apply(query, key, cos, sin)
    return found


def is_llama_norm(kind: type[Any]) -> bool:
    """Whether norms of a class compute what Llama's do."""
    return _same(kind.forward, modeling_llama.LlamaRMSNorm.forward)


def is_gemma_norm(kind: type[Any]) -> bool:
    """Whether norms of a class compute what Gemma's do."""
    gemma = modeling_gemma.GemmaRMSNorm
    inner = getattr(kind, "_norm", None)
    return _same(kind.forward, gemma.forward) and _same(inner, gemma._norm)


def is_llama_mlp(kind: type[Any]) -> bool:
    """Whether feed-forward layers of a class compute what Llama's do."""
    return _same(kind.forward, modeling_llama.LlamaMLP.forward)


def rotates_as_llama(forward: object) -> bool:
    """Whether the forward of an attention layer rotates queries and keys as Llama's does."""
    if not isinstance(forward, FunctionType) or ROTATE not in forward.__code__.co_names:
        return False
    named = forward.__globals__
    llama = vars(modeling_llama)
    return all(_same(named.get(name), llama[name]) for name in (ROTATE, "rotate_half"))


def _same(one: object, other: object) -> bool:
    """Whether two functions have the same instructions, names and numbers."""
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)):
        return False
    if inspect.unwrap(other) is not other:
        # a wrapper's instructions say nothing of what it calls
        return False
    first, second = one.__code__, other.__code__
    numbers = [
        [each for each in code.co_consts if not isinstance(each, str)] for code in (first, second)
    ]
    names = first.co_names == second.co_names and numbers[0] == numbers[1]
    return names and first.co_code == second.co_code
