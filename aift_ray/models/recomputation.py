"""What of a block is kept for the backward pass: its input, more, or its input in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks

# registers an operation that is named below
from torch.nn.attention import varlen  # noqa: F401
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from aift_ray.models.attention.packed_documents import recomputing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
_Packed = tuple[torch.device, torch.Tensor]

# PyTorch's kernels of attention, by namespace and name
_KERNELS = {
    "aten": (
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    ),
    "torch_attn": ("_varlen_attn",),
}
_ATTENTION = {
    getattr(getattr(torch.ops, space), name).default
    for space, names in _KERNELS.items()
    for name in names
}
_MATMULS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def recompute_activations(model: PreTrainedModel, selective: bool = False) -> None:
    """Compute the activations of a model's blocks again in the backward pass.

    Args:
        selective: the outputs of attention and of every other matrix product are kept.
    """
    # the transformers that vLLM needs has the older name alone
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)(
        {"use_reentrant": False, "context_fn": _some_kept if selective else recomputing}
    )


def offloaded_activations(width: int) -> AbstractContextManager[None]:
    """Forward passes whose hidden states are kept in host memory until the backward pass.

    A GPU's copies are queued on its stream, to and from pinned memory: nobody waits for them.

    Args:
        width: of the hidden states, (rows, tokens, width), which blocks are recomputed from.
    """

    def pack(tensor: torch.Tensor) -> _Packed | torch.Tensor:
        if tensor.ndim != 3 or tensor.shape[-1] != width:
            return tensor
        pinned = tensor.device.type == "cuda"
        held = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
        return tensor.device, held.copy_(tensor, non_blocking=pinned)

    def unpack(packed: _Packed | torch.Tensor) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, held = packed
        return held.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)


def _some_kept() -> Contexts:
    """`context_fn` of `torch.utils.checkpoint`, of a forward pass of one block."""
    kept = create_selective_checkpoint_contexts(_EveryOther())
    first, second = (_both(*pair) for pair in zip(recomputing(), kept, strict=True))
    return first, second


class _EveryOther:
    """Which outputs of a block are kept: those of attention, and of every other matrix product."""

    def __init__(self) -> None:
        self._products = {False: 0, True: 0}

    def __call__(
        self, ctx: SelectiveCheckpointContext, func: Any, *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        """Decide on the output of an operation, in the forward pass and in its recomputation."""
        keeps = func in _ATTENTION
        if func in _MATMULS:
            self._products[ctx.is_recompute] += 1
            keeps = self._products[ctx.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(
    first: AbstractContextManager[Any], second: AbstractContextManager[Any]
) -> Iterator[None]:
    with first, second:
        yield
