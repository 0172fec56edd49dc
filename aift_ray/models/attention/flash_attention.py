"""FlashAttention 2: where it computes, and PyTorch's over packed documents."""

from __future__ import annotations

import torch
from torch.nn.attention import varlen
from transformers.utils.import_utils import is_flash_attn_2_available

from aift_ray.models.attention.packed_documents import PackedDocuments


def has_flash(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether the package of FlashAttention 2 is installed and computes on `device` in `dtype`."""
    return is_flash_attn_2_available() and flash_computes(device, dtype)


def flash_computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether FlashAttention 2, that of PyTorch or the package, computes on `device` in `dtype`."""
    # Ampere and newer, 16 bits only
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def attend_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    documents: PackedDocuments,
) -> torch.Tensor:
    """Attention of each document to itself, (1, tokens, heads, size), by one kernel.

    Of a document with more keys than queries, the queries are those of the last tokens.
    """
    cu_seqlens_k, longest = documents.keys
    cu_seqlens_k = cu_seqlens_k.to(query.device)
    # a window of n is a token and the n - 1 before it
    left = window - 1 if window is not None and window < longest else -1
    attended = varlen.varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        documents.cu_seqlens.to(query.device),
        cu_seqlens_k,
        documents.max_seqlen,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended[None]
