"""Attention over documents laid end to end, by a loop and by one kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aift_ray.models import attention


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
    looped, _ = attention.document_attention(
        torch.nn.Module(), *given, None, cu_seq_lens_q=borders, max_length_q=7, **more
    )
    monkeypatch.setattr(attention.varlen, "varlen_attn", replaced_kernel)
    monkeypatch.setattr(attention, "flash_computes", lambda device, dtype: True)
    by_kernel, _ = attention.document_attention(
        torch.nn.Module(), *given, None, cu_seq_lens_q=borders, max_length_q=7, **more
    )
    torch.testing.assert_close(by_kernel, looped, rtol=1e-5, atol=1e-5)
