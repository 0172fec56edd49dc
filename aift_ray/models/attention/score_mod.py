"""Attention whose scores are changed before or in the softmax: softcapping and sinks.

No fused kernel of PyTorch computes these, so scores are made in memory, a piece of the queries at
a time, and made again in the backward pass.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

# scores of this many queries are in memory at once
_QUERIES = 512


def expanded(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values (batch, kv heads, tokens, size), repeated to `heads` heads."""
    return states.repeat_interleave(heads // states.shape[1], dim=1)


def attend_with_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """Attention as transformers' eager functions of Gemma 2 and gpt-oss compute it.

    Args:
        query: (batch, heads, tokens, size).
        key, value: (batch, kv heads, key tokens, size).
        mask: broadcast to (batch, heads, tokens, key tokens): True where a key counts, or numbers
            that are added to the scores; None: all, or with `causal` those up to each query.
        softcap: see `attention.document_attention`; None: none.
        sinks: (heads,); None: none.

    Returns:
        (batch, heads, tokens, value size).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = expanded(key, query.shape[1]), expanded(value, query.shape[1])
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(key.shape[2] - query.shape[2])
    pieces = []
    for start in range(0, query.shape[2], _QUERIES):
        rows = slice(start, start + _QUERIES)
        here = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
        options = (here, scale, dropout, softcap, sinks)
        if query.shape[2] <= _QUERIES or not torch.is_grad_enabled():
            pieces.append(_piece(query[:, :, rows], key, value, *options))
        else:
            again = checkpoint(_piece, query[:, :, rows], key, value, *options, use_reentrant=False)
            pieces.append(again)
    return torch.cat(pieces, dim=2)


def _piece(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        further = sinks.reshape(1, -1, 1, 1).to(scores).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, further], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    if sinks is not None:
        weights = weights[..., :-1]
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    return torch.matmul(weights.to(value.dtype), value)
