"""Attention over packed documents, and every other attention of a model, by one function.

transformers builds a (tokens x tokens) mask for documents that are packed end to end in one row:
time and memory grow with the square of the row. Here each document is attended by itself, so they
grow with the square of a document. The borders come from `packed`, a context around the forward
pass: a layer that does not hand its keyword arguments on makes no difference.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from aift_ray.errors import ModelError
from aift_ray.models.attention.flash_attention import attend_flash, flash_computes
from aift_ray.models.attention.packed_documents import (
    PackedDocuments,
    current,
    document_mask,
    is_window,
    leave_documents_alone,
)
from aift_ray.models.attention.score_mod import attend_with_scores, expanded
from aift_ray.models.families.refusals import PADDED, refusal

NAME = "documents"
_FLASH = "one call of PyTorch's FlashAttention 2"
_SDPA = "PyTorch's SDPA, each document by itself"
_SCORES = "scores in memory, for softcapping or sinks, each document by itself"
_LOG = logging.getLogger(__name__)
# numbers of a head's keys up to which a CPU attends faster in fp32: bf16's backward is slow there
_SMALL = 12288
# what layers hand on that attention does not depend on
_NAMES = (
    "cache_position cu_seq_lens_k deterministic logits_to_keep max_length_k "
    "num_items_in_batch output_attentions output_hidden_states output_router_logits "
    "position_embeddings position_ids return_dict tokenizer training use_cache"
)
_WITHOUT_EFFECT = frozenset(_NAMES.split())


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a packed row, or attention under a mask.

    Args:
        query: (batch, heads, tokens, size); batch is 1 for a packed row.
        key: (batch, kv heads, key tokens, size).
        value: (batch, kv heads, key tokens, value size).
        attention_mask: (batch, 1, tokens, key tokens), True or 0 where a key counts; None: causal.
            In a packed row, what `document_mask` gives.
        sliding_window: of a packed row's layer, where it hands one on; a mask says the same.
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
        s_aux: (heads,), a further score for each query that takes part in the softmax and has no
            value (gpt-oss's attention sinks).
        cu_seq_lens_q, max_length_q: the documents, where a layer hands them on; else those of
            `packed`.

    Returns:
        (batch, tokens, heads, value size), and None for the weights.

    Raises:
        ModelError: a keyword that changes the result and is not computed here.
    """
    if attention_mask is not None and not is_window(attention_mask):
        # a mask of its own, made outside `packed`, says all
        cu_seq_lens_q = None
    documents = _documents(module, query, cu_seq_lens_q, max_length_q)
    _check_keywords(module, kwargs, documents is not None)
    if documents is None:
        plain = softcap is None and s_aux is None
        made = sdpa_attention_forward if plain else _with_scores
        more = kwargs if plain else {"softcap": softcap, "sinks": s_aux}
        output: tuple[torch.Tensor, None] = made(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return output
    # eager attention goes by the mask alone, and some layers hand no window on
    window = sliding_window if attention_mask is not None else None
    if attention_mask is not None and window is None:
        window = int(attention_mask)
    scores = _Scores(scaling, dropout, window, softcap, s_aux)
    attend = _in_documents if documents.places is None else _in_sharing_documents
    if documents.divided is not None:
        attend = _in_chunks
    return attend(query, key, value, documents, scores), None


def _with_scores(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, None]:
    """Attention under a mask with softcapping or sinks, as `document_attention`."""
    causal = mask is None and query.shape[2] > 1
    options = (scaling, dropout, softcap, sinks, causal)
    return attend_with_scores(query, key, value, mask, *options).transpose(1, 2).contiguous(), None


def _in_sharing_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: PackedDocuments,
    scores: _Scores,
) -> torch.Tensor:
    """The same, where tokens that several documents share are attended in each of them."""
    assert documents.places is not None
    assert documents.own is not None
    places, own = (each.to(query.device) for each in (documents.places, documents.own))
    q, k, v = (states.index_select(2, places) for states in (query, key, value))
    return _in_documents(q, k, v, documents, scores).index_select(1, own)


def _in_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: PackedDocuments,
    scores: _Scores,
) -> torch.Tensor:
    """The same, where a worker has some of the row's queries, and gathers the keys of all."""
    assert documents.divided is not None
    key, value = documents.divided.gather(key, value)
    begin, outputs = 0, []
    for keys, chunk in documents.divided.chunks:
        part = query[:, :, begin : begin + chunk.tokens]
        outputs.append(_in_documents(part, key[:, :, keys], value[:, :, keys], chunk, scores))
        begin += chunk.tokens
    return torch.cat(outputs, dim=1)


def _in_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: PackedDocuments,
    scores: _Scores,
) -> torch.Tensor:
    """(1, tokens, heads, value size): each document by itself, in one call where there is one."""
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    plain = scores.softcap is None and scores.sinks is None
    fits = plain and not scores.dropout and key.shape[-1] == value.shape[-1]
    # the kernel takes heads of up to 256 channels
    flash = fits and flash_computes(query.device, dtype) and query.shape[-1] in range(8, 257, 8)
    if not torch.compiler.is_compiling():
        _say(_FLASH if flash else _SDPA if plain else _SCORES)
    if flash:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return attend_flash(query, key, value, scores.scaling, scores.window, documents)
    lengths = documents.cu_seqlens, documents.keys[0]
    each: torch.Tensor = _each_document(query, key, value, lengths, scores)
    return each


@cache
def _say(kernel: str) -> None:
    """Log what computes packed documents; once."""
    _LOG.info("attention of packed documents: %s", kernel)


@dataclass(frozen=True)
class _Scores:
    """How scores are made; see `document_attention`."""

    scaling: float | None
    dropout: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


def _documents(
    module: torch.nn.Module, query: torch.Tensor, cu_seqlens: torch.Tensor | None, max_seqlen: int
) -> PackedDocuments | None:
    """The documents of a call: handed on by the layer, or those of the forward pass."""
    if cu_seqlens is not None:
        # a compiler sees these as inputs
        return PackedDocuments(cu_seqlens, max_seqlen, query.shape[2])
    documents = current()
    if documents is not None and (query.shape[0], query.shape[2]) != (1, documents.tokens):
        what = f"attends {tuple(query.shape)} in a packed row of {documents.tokens} tokens"
        raise ModelError([refusal(_kind(module), what, PADDED)])
    return documents


def _check_keywords(module: torch.nn.Module, given: dict[str, Any], in_documents: bool) -> None:
    """Refuse keywords that would be dropped."""
    # the function of SDPA takes these, under a mask
    known = {"is_causal"} if in_documents else {"is_causal", "position_bias", "indices"}
    dropped = [
        name
        for name, value in given.items()
        if value is not None and value is not False and name not in known | _WITHOUT_EFFECT
    ]
    if in_documents and given.get("is_causal") is False:
        dropped.append("is_causal=False")
    if dropped:
        what = f"{type(module).__name__} asks attention for {', '.join(dropped)}, which it can't do"
        raise ModelError([refusal(_kind(module), what, PADDED if in_documents else None)])


def _kind(module: torch.nn.Module) -> str:
    config: Any = getattr(module, "config", None)
    return str(getattr(config, "model_type", None) or type(module).__name__)


# their number and lengths are not known to a compiler
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _each_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: tuple[torch.Tensor, torch.Tensor],
    scores: _Scores,
) -> torch.Tensor:
    queries, keys = (torch.diff(each).tolist() for each in cu_seqlens)
    dtype, wide = query.dtype, query.device.type == "cpu" and max(keys) * key.shape[-1] <= _SMALL
    with torch.autocast("cpu", enabled=False) if wide else nullcontext():
        q, k, v = (each.float() if wide else each for each in (query, key, value))
        documents = zip(q.split(queries, 2), k.split(keys, 2), v.split(keys, 2), strict=True)
        outputs = [_attend(*each, scores).transpose(1, 2) for each in documents]
        return torch.cat(outputs, dim=1).to(dtype)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: _Scores
) -> torch.Tensor:
    """One document by itself, or its last queries, (1, heads, tokens, value size)."""
    length, window, mask = key.shape[2], scores.window, None
    windowed = window is not None and length > window
    if windowed or query.shape[2] < length:
        at = torch.arange(length, device=query.device)
        distance = at[length - query.shape[2] :, None] - at[None, :]
        mask = distance >= 0
        if window is not None:
            mask &= distance < window
    if scores.softcap is not None or scores.sinks is not None:
        options = (scores.scaling, scores.dropout, scores.softcap, scores.sinks)
        return attend_with_scores(query, key, value, mask, *options, causal=mask is None)
    # values of another width than the keys: SDPA repeats heads for like widths alone
    repeated = query.shape[1] != key.shape[1] and key.shape[-1] != value.shape[-1]
    if repeated:
        key, value = expanded(key, query.shape[1]), expanded(value, query.shape[1])
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=scores.dropout,
        is_causal=mask is None,
        scale=scores.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def register() -> None:
    """Let transformers know this attention by its name."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, document_mask)
    leave_documents_alone()
