"""RMSNorm, SwiGLU or GeGLU, and rotary embeddings of a model by Liger's fused Triton kernels.

Single modules are replaced, and only those whose code is that of Llama's or Gemma's, instruction
by instruction: a family that computes otherwise keeps its own. Evaluation and generation run
transformers' code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from aift_ray.models import liger_compat
from aift_ray.utils.forward_compat import replace_forward

Forward = Callable[..., Any]


def fuse(model: nn.Module) -> Counter[str]:
    """Have the training forward of `model` use the kernels, in place.

    Returns:
        How many modules do: `norm`, `feed-forward`, `rotary embedding`.
    """
    found: Counter[str] = Counter()
    for kind, module, forward in list(_fused(model)):
        replace_forward(module, _in_training(module, forward))
        found[kind] += 1
    return found


def fusable(model: nn.Module) -> Counter[str]:
    """How many modules of `model` would use the kernels."""
    return Counter(kind for kind, _, _ in _fused(model))


def _fused(model: nn.Module) -> Iterator[tuple[str, Any, Forward]]:
    for each in model.modules():
        module: Any = each
        made = type(module)
        if liger_compat.is_llama_norm(made):
            yield "norm", module, _norm(module, module.variance_epsilon, 0.0, "llama")
        elif liger_compat.is_gemma_norm(made):
            yield "norm", module, _norm(module, module.eps, 1.0, "gemma")
        elif liger_compat.is_llama_mlp(made):
            if isinstance(module.act_fn, SiLUActivation | nn.SiLU | GELUTanh):
                yield "feed-forward", module, _mlp(module)
        elif liger_compat.rotates_as_llama(made.forward):
            yield "rotary embedding", module, _rotating(module)


def _in_training(module: nn.Module, fused: Forward) -> Forward:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (fused if module.training else plain)(*args, **kwargs)

    return forward


def _norm(module: Any, eps: float, offset: float, casting: str) -> Forward:
    def forward(x: Tensor) -> Tensor:
        return liger_compat.rms_norm(x, module.weight, eps, offset, casting)

    return forward


def _mlp(module: Any) -> Forward:
    silu = not isinstance(module.act_fn, GELUTanh)

    def forward(x: Tensor) -> Any:
        gated = liger_compat.gated(module.gate_proj(x), module.up_proj(x), silu)
        return module.down_proj(gated)

    return forward


def _rotating(module: nn.Module) -> Forward:
    """The layer's own forward, in which one name means the kernel."""
    own: Any = type(module).forward
    rotate = {liger_compat.ROTATE: liger_compat.rotated}
    made = FunctionType(
        own.__code__, own.__globals__ | rotate, own.__name__, own.__defaults__, own.__closure__
    )
    made.__kwdefaults__ = own.__kwdefaults__
    return MethodType(made, module)
