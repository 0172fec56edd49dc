"""PyTorch's FlashAttention over documents laid end to end, on a real GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from aift_ray.engine.loss import documents
from aift_ray.models.attention import document_attention
from aift_ray.models.attention.packed_documents import PackedDocuments, packed
from tests.parallel.test_context_parallel import Whole, places, shares

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available()
        or not document_attention.flash_computes(torch.device("cuda", 0), torch.bfloat16),
        reason="needs an Ampere GPU or newer",
    ),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (8, 2, 128), (4, 1, 256)])
def test_one_kernel_attends_as_the_loop_in_fp32_does(
    dtype: torch.dtype, window: int | None, heads: int, kv_heads: int, size: int
) -> None:
    torch.manual_seed(0)
    lengths = [33, 1, 190, 64]
    borders = torch.tensor([0, 33, 34, 224, 288], dtype=torch.int32, device="cuda")
    shapes = [(1, number, sum(lengths), size) for number in (heads, kv_heads, kv_heads)]
    given = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    seed = torch.randn(1, sum(lengths), heads, size, device="cuda")
    found = []
    for width in (torch.float32, dtype):
        leaves = [each.to(width).detach().requires_grad_() for each in given]
        out, _ = document_attention.document_attention(
            torch.nn.Module(),
            *leaves,
            None if window is None else torch.tensor(window),
            scaling=size**-0.5,
            cu_seq_lens_q=borders,
            max_length_q=max(lengths),
        )
        out.backward(seed.to(out.dtype))
        found.append([out, *[leaf.grad for leaf in leaves]])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype is dtype
        error = (rounded.float() - exact).norm() / exact.norm()
        assert error < 1e-2


@pytest.mark.parametrize("how", ["softcap", "sinks"])
def test_caps_and_sinks_in_16_bits_are_those_of_fp32(how: str) -> None:
    torch.manual_seed(0)
    borders = torch.tensor([0, 33, 34, 800], dtype=torch.int32, device="cuda")
    more = {"softcap": 2.0} if how == "softcap" else {"s_aux": torch.randn(4, device="cuda")}
    given = [torch.randn(1, heads, 800, 64, device="cuda") for heads in (4, 2, 2)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [each.to(dtype).detach().requires_grad_() for each in given]
        with packed(PackedDocuments(borders, 766, 800)):
            out, _ = document_attention.document_attention(torch.nn.Module(), *leaves, None, **more)
        out.float().square().sum().backward()
        found.append([out, *[leaf.grad for leaf in leaves]])
    for exact, rounded in zip(*found, strict=True):
        assert (rounded.float() - exact).norm() / exact.norm() < 2e-2


def test_a_row_takes_one_kernel_however_many_documents_it_has() -> None:
    def kernels(documents: int) -> int:
        borders = torch.arange(documents + 1, dtype=torch.int32, device="cuda") * 16
        states = torch.randn(1, 2, documents * 16, 64, device="cuda", dtype=torch.bfloat16)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            document_attention.document_attention(
                torch.nn.Module(), *[states] * 3, None, cu_seq_lens_q=borders, max_length_q=16
            )
            torch.cuda.synchronize()
        return sum("flash" in event.name.lower() for event in seen.events())

    assert kernels(2) == kernels(40) == 1


@pytest.mark.parametrize("window", [None, 24])
def test_a_worker_attends_its_chunks_as_the_whole_row_is_attended(window: int | None) -> None:
    torch.manual_seed(0)
    whole, parts = shares([60, 1, 100, 30], 2)
    tokens, device = 2 * parts[0].input_ids.shape[1], torch.device("cuda", 0)
    shapes = [(1, number, tokens, 64) for number in (4, 2, 2)]
    query, key, value = (torch.randn(shape, device=device).bfloat16() for shape in shapes)
    mask = None if window is None else torch.full((1, 1, 1, 1), window)
    module, found = torch.nn.Module(), torch.empty(1, tokens, 4, 64, device=device)
    for part in parts:
        own, sent = places(part), part.to(device)
        group: Any = Whole(key, value)
        with packed(documents(sent, group)):
            found[:, own], _ = document_attention.document_attention(
                module, query[:, :, own], key[:, :, own], value[:, :, own], mask
            )
    filled = replace(
        whole.to(device),
        input_ids=torch.zeros(1, tokens, device=device),
        cu_seqlens=parts[0].cu_seqlens.to(device),
    )
    with packed(documents(filled)):
        exact, _ = document_attention.document_attention(
            module, query.float(), key.float(), value.float(), mask
        )
    assert (found - exact).norm() / exact.norm() < 1e-2
