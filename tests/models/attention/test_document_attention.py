"""Attention over documents laid end to end, by a loop and by one kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    packed_sequence_compatibility_function,
    sliding_window_causal_mask_function,
)
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_eager
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_eager

from aift_ray.errors import ModelError
from aift_ray.models.attention import document_attention, flash_attention, score_mod
from aift_ray.models.attention.packed_documents import PackedDocuments, packed, recomputing


def states(lengths: list[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Queries of four heads, keys and values of two; the borders of documents."""
    torch.manual_seed(0)
    tokens = sum(lengths)
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return tuple(torch.randn(1, heads, tokens, 8) for heads in (4, 2, 2)), borders


def replaced_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What PyTorch says its kernel for GPUs computes, written out: (tokens, heads, size)."""
    assert enable_gqa
    assert max_q == max_k == int(torch.diff(cu_seq_q).max())
    left, right = window_size
    assert right == 0
    out = torch.zeros_like(query)
    for begin, end in zip(cu_seq_q.tolist(), cu_seq_k[1:].tolist(), strict=False):
        for at in range(begin, end):
            first = begin if left < 0 else max(begin, at - left)
            for head in range(query.shape[1]):
                own = head // 2
                scores = key[first : at + 1, own] @ query[at, head]
                scores *= scale or query.shape[-1] ** -0.5
                out[at, head] = scores.softmax(0) @ value[first : at + 1, own]
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_one_kernel_is_asked_what_the_loop_computes(
    window: int | None, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, borders = states([5, 1, 7])
    more: dict[str, Any] = {"scaling": scaling, "sliding_window": window}
    mask = None if window is None else torch.tensor(window)
    looped, _ = document_attention.document_attention(
        torch.nn.Module(), *given, mask, cu_seq_lens_q=borders, max_length_q=7, **more
    )
    monkeypatch.setattr(flash_attention.varlen, "varlen_attn", replaced_kernel)
    monkeypatch.setattr(document_attention, "flash_computes", lambda device, dtype: True)
    by_kernel, _ = document_attention.document_attention(
        torch.nn.Module(), *given, mask, cu_seq_lens_q=borders, max_length_q=7, **more
    )
    torch.testing.assert_close(by_kernel, looped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kernel", [False, True])
def test_tokens_that_two_documents_share_are_attended_in_each(
    window: int | None, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        monkeypatch.setattr(flash_attention.varlen, "varlen_attn", replaced_kernel)
        monkeypatch.setattr(document_attention, "flash_computes", lambda device, dtype: True)
    given, _ = states([7, 3])
    # 4 tokens of prompt with 3 of one answer and 2 of another, and a document of its own
    documents = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8], [9]]
    places = torch.tensor([at for rows in documents for at in rows])
    own = torch.tensor([0, 1, 2, 3, 4, 5, 6, 11, 12, 13])
    borders = torch.tensor([0, 7, 13, 14], dtype=torch.int32)
    mask = None if window is None else torch.tensor(window)
    with packed(PackedDocuments(borders, 7, 10, places, own)):
        found, _ = document_attention.document_attention(torch.nn.Module(), *given, mask)
    for rows, kept in zip(documents, (slice(7), slice(4, 6), slice(1)), strict=True):
        one = [part[:, :, rows] for part in given]
        ends = torch.tensor([0, len(rows)], dtype=torch.int32)
        with packed(PackedDocuments(ends, len(rows), len(rows))):
            wanted, _ = document_attention.document_attention(torch.nn.Module(), *one, mask)
        at = torch.tensor(rows)[kept]
        torch.testing.assert_close(found[:, at], wanted[:, kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("small", [True, False])
def test_short_documents_are_attended_in_fp32_on_a_cpu(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(document_attention, "_SMALL", 0)
    given, borders = states([5, 1, 7])
    narrow = [part.bfloat16().requires_grad_() for part in given]
    exact = [part.detach().float().requires_grad_() for part in narrow]
    more: dict[str, Any] = {"cu_seq_lens_q": borders, "max_length_q": 7}
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = document_attention.document_attention(torch.nn.Module(), *narrow, None, **more)
    wanted, _ = document_attention.document_attention(torch.nn.Module(), *exact, None, **more)
    assert found.dtype == torch.bfloat16
    # what is left is the rounding of the result
    assert torch.equal(found, wanted.bfloat16()) == small
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    found.float().sum().backward()
    wanted.sum().backward()
    for one, other in zip(narrow, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=2e-2, atol=2e-2)


def eager_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """transformers' eager functions of Gemma 2 and gpt-oss; (1, tokens, heads, size)."""
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.training = query.shape[1] // key.shape[1], False
    if sinks is not None:
        module.sinks = sinks
        return gpt_oss_eager(module, query, key, value, mask, scaling=0.4)[0]
    return gemma2_eager(module, query, key, value, mask, scaling=0.4, softcap=softcap)[0]


@pytest.mark.parametrize("how", ["softcap", "sinks"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("queries", [4, 512])
def test_softcapping_and_sinks_are_those_of_transformers(
    how: str, window: int | None, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_mod, "_QUERIES", queries)
    given, borders = states([5, 1, 7])
    given = tuple(tensor.requires_grad_() for tensor in given)
    softcap, sinks = (2.0, None) if how == "softcap" else (None, torch.randn(4))
    at = torch.arange(13)
    document = torch.bucketize(at, borders.long(), right=True)
    distance = at[:, None] - at
    allowed = (document[:, None] == document) & (distance >= 0)
    if window is not None:
        allowed &= distance < window
    wanted = eager_scores(*given, allowed, softcap, sinks)
    with packed(PackedDocuments(borders, 7, 13)):
        found, _ = document_attention.document_attention(
            torch.nn.Module(),
            *given,
            None if window is None else torch.tensor(window),
            scaling=0.4,
            softcap=softcap,
            s_aux=sinks,
        )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(wanted)
    mine = torch.autograd.grad((found * weights).sum(), given)
    theirs = torch.autograd.grad((wanted * weights).sum(), given)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # a padded batch brings a mask, of numbers or of True and False
    for mask in (allowed, torch.where(allowed, 0.0, torch.finfo(torch.float32).min)):
        under_mask, _ = document_attention.document_attention(
            torch.nn.Module(), *given, mask[None, None], scaling=0.4, softcap=softcap, s_aux=sinks
        )
        torch.testing.assert_close(under_mask, wanted, rtol=1e-5, atol=1e-5)


def test_a_keyword_that_changes_the_result_is_refused_by_name() -> None:
    given, borders = states([3])
    with pytest.raises(ModelError, match="head_mask"):
        document_attention.document_attention(
            torch.nn.Module(), *given, None, head_mask=torch.ones(4)
        )
    with packed(PackedDocuments(borders, 3, 3)), pytest.raises(ModelError, match="position_bias"):
        document_attention.document_attention(
            torch.nn.Module(), *given, None, position_bias=torch.ones(1)
        )
    with packed(PackedDocuments(borders, 3, 3)), pytest.raises(ModelError, match="is_causal"):
        document_attention.document_attention(torch.nn.Module(), *given, None, is_causal=False)


def test_attention_over_something_else_than_the_packed_row_is_an_error() -> None:
    given, borders = states([3, 4])
    with (
        packed(PackedDocuments(borders, 4, 9)),
        pytest.raises(ModelError, match="packed row of 9 tokens"),
    ):
        document_attention.document_attention(torch.nn.Module(), *given, None)


@pytest.mark.parametrize(
    ("mask_function", "window", "causal"),
    [
        (causal_mask_function, None, True),
        (sliding_window_causal_mask_function(4), 4, True),
        (chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int)), 4, False),
        (bidirectional_mask_function, None, False),
    ],
)
def test_a_packed_row_has_a_mask_that_is_causal_within_a_window_or_is_refused(
    mask_function: Any, window: int | None, causal: bool
) -> None:
    borders = torch.tensor([0, 9, 11], dtype=torch.int32)
    positions = torch.cat([torch.arange(9), torch.arange(2)])[None]
    documents = torch.tensor([[0] * 9 + [1] * 2])
    # as transformers changes a mask where it sees positions that restart
    function = packed_sequence_compatibility_function(mask_function, positions, documents)
    with packed(PackedDocuments(borders, 9, 11)):
        if causal:
            mask = document_attention.document_mask(
                1, 11, 11, mask_function=function, local_size=window
            )
            assert mask is None if window is None else mask == window
        else:
            with pytest.raises(ModelError, match="not causal within a window"):
                document_attention.document_mask(
                    1, 11, 11, mask_function=function, local_size=window
                )


def test_recomputation_in_the_backward_pass_sees_the_documents_of_its_forward() -> None:
    given, borders = states([5, 8])
    given = tuple(tensor.requires_grad_() for tensor in given)

    def attended(*tensors: torch.Tensor) -> torch.Tensor:
        return document_attention.document_attention(torch.nn.Module(), *tensors, None)[0]

    with packed(PackedDocuments(borders, 8, 13)):
        plain = attended(*given).square().sum()
        again = checkpoint(attended, *given, use_reentrant=False, context_fn=recomputing)
        again = again.square().sum()
    wanted = torch.autograd.grad(plain, given)
    found = torch.autograd.grad(again, given)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
