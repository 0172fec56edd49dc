"""Attention over documents that lie end to end in one row, without a mask.

transformers builds a (tokens x tokens) mask for such a row: time and memory grow with the square
of the row. Here each document is attended by itself, so they grow with the square of a document.
The borders arrive as `cu_seq_lens_q`, the keyword that FlashAttention uses in transformers. On a
GPU in 16 bits one call of PyTorch's own FlashAttention 2 takes all documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available

NAME = "documents"


def has_flash(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether the package of FlashAttention 2 is installed and computes on `device` in `dtype`."""
    return is_flash_attn_2_available() and flash_computes(device, dtype)


def flash_computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether FlashAttention 2, that of PyTorch or the package, computes on `device` in `dtype`."""
    # Ampere and newer, 16 bits only
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        query: (1, heads, tokens, size).
        key, value: (1, kv heads, tokens, size).
        cu_seq_lens_q: (documents + 1,), cumulative lengths; None: an ordinary batch.
        max_length_q: tokens of the longest document.

    Returns:
        (1, tokens, heads, size), and None for the weights.
    """
    if cu_seq_lens_q is None and attention_mask is None and query.shape[2] == key.shape[2]:
        whole = _attend(query, key, value, scaling, dropout, sliding_window)
        return whole.transpose(1, 2).contiguous(), None
    if cu_seq_lens_q is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    # the kernel takes heads of up to 256 channels
    if flash_computes(query.device, dtype) and not dropout and query.shape[-1] in range(8, 257, 8):
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        borders, longest = cu_seq_lens_q, max_length_q
        return _flash(query, key, value, scaling, sliding_window, borders, longest), None
    each: torch.Tensor = _each_document(
        query, key, value, cu_seq_lens_q, scaling, dropout, sliding_window
    )
    return each, None


# their number and lengths are not known to a compiler
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _each_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    lengths = torch.diff(borders).tolist()
    documents = (states.split(lengths, dim=2) for states in (query, key, value))
    outputs = [
        _attend(q, k, v, scaling, dropout, window) for q, k, v in zip(*documents, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    borders: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """(1, tokens, heads, size), as `document_attention`, by one kernel."""
    # a window of n is a token and the n - 1 before it
    left = window - 1 if window is not None and window < longest else -1
    attended = varlen.varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended[None]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        at = torch.arange(length, device=query.device)
        distance = at[:, None] - at[None, :]
        mask = (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """No mask where `document_attention` needs none; that of SDPA for padding and caches."""
    if attention_mask is None and q_offset == 0 and q_length == kv_length:
        return None
    mask: torch.Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        attention_mask=attention_mask,
        **kwargs,
    )
    return mask


AttentionInterface.register(NAME, document_attention)
AttentionMaskInterface.register(NAME, document_mask)
