"""Documents that lie end to end in one row, as the layers of a model see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from aift_ray.errors import ModelError, Problem


@dataclass(frozen=True)
class Packed:
    """Where the documents of a packed row begin and end.

    Attributes:
        cu_seqlens: (documents + 1,), cumulative lengths, int32.
        max_seqlen: tokens of the longest document.
        tokens: of the row.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    tokens: int


_PACKED: ContextVar[Packed | None] = ContextVar("packed", default=None)


@contextmanager
def packed(documents: Packed | None) -> Iterator[None]:
    """Attention within `documents` alone, in the forward passes inside this context."""
    token = _PACKED.set(documents)
    try:
        yield
    finally:
        _PACKED.reset(token)


def current() -> Packed | None:
    """The documents of the forward pass that is under way; None: its rows are padded."""
    return _PACKED.get()


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of `torch.utils.checkpoint`: recomputation sees the documents of its forward."""
    documents = _PACKED.get()
    return packed(documents), packed(documents)


def check_causal(
    kind: str,
    mask_function: Callable[..., Any],
    window: int | None,
    use_vmap: bool,
    documents: Packed,
) -> None:
    """Look at the edges of a mask: the next token, the one before, and those around the window.

    Raises:
        ModelError: the mask is not causal within a window.
    """
    if window == 0:
        # no layer can use it: some make a mask for windows that they don't have
        return
    borders = documents.cu_seqlens.long()
    at = torch.arange(documents.tokens, device=borders.device)
    begins = borders[torch.bucketize(at, borders, right=True) - 1]
    edges = {-1: False, 0: True} | ({window - 1: True, window: False} if window else {1: True})
    for distance, allowed in edges.items():
        other = at - distance
        inside = (other >= begins) & (other < documents.tokens)
        rows, columns = at[inside], other[inside]
        zeros = torch.zeros_like(rows)
        same = begins[rows] == begins[columns]
        found = zeros.bool() if use_vmap else mask_function(zeros, zeros, rows, columns)
        if use_vmap or not torch.equal(found.expand_as(same), same if allowed else zeros.bool()):
            what = "its attention is not causal within a window, which packed rows are computed for"
            raise ModelError([Problem(f"model {kind}", what, "pad the rows: --data.packing false")])
