"""Attention over documents that lie end to end in one row, without a mask.

transformers builds a (tokens x tokens) mask for such a row: time and memory grow with the square
of the row. Here each document is attended by itself, so they grow with the square of a document.
The borders arrive as `cu_seq_lens_q`, the keyword that FlashAttention uses in transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available

NAME = "documents"


def choose(device: torch.device) -> str:
    """The attention that trains: FlashAttention 2 where there is one, else documents."""
    return "flash_attention_2" if has_flash(device) else NAME


def has_flash(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether FlashAttention 2 is installed and computes on `device` in `dtype`."""
    if device.type != "cuda" or not is_flash_attn_2_available():
        return False
    # Ampere and newer, 16 bits only
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return recent and dtype in (torch.float16, torch.bfloat16)


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        query: (1, heads, tokens, size).
        key, value: (1, kv heads, tokens, size).
        cu_seq_lens_q: (documents + 1,), cumulative lengths; None: an ordinary batch.

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
