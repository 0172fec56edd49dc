"""Documents that lie end to end in one row, as the layers of a model see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import masking_utils
from transformers.masking_utils import causal_mask_function, sdpa_mask

from aift_ray.errors import ModelError
from aift_ray.models.families.refusals import PADDED, refusal


@dataclass(frozen=True)
class DividedRow:
    """A packed row whose tokens are divided over workers.

    Attributes:
        gather: keys and values of the whole row from those of this worker's tokens.
        chunks: of this worker: the keys that each attends, in the row, and its documents.
    """

    gather: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    chunks: tuple[tuple[slice, PackedDocuments], ...]


@dataclass(frozen=True)
class PackedDocuments:
    """Where the documents of a packed row begin and end.

    Attributes:
        cu_seqlens: (documents + 1,), cumulative lengths, int32.
        max_seqlen: tokens of the longest document.
        tokens: of the row, that are computed here.
        cu_seqlens_k, max_seqlen_k: the same of keys, where a document has more of them, before the
            tokens that are computed; None: it has as many.
        divided: of a row that is divided over workers; `cu_seqlens` are those of the whole row.
        places: (tokens of all documents,), where in the row each of them is, if documents share
            tokens; None: they lie end to end.
        own: (tokens,), a place of each token of the row among those of all documents.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    tokens: int
    places: torch.Tensor | None = None
    own: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    max_seqlen_k: int = 0
    divided: DividedRow | None = None

    @property
    def keys(self) -> tuple[torch.Tensor, int]:
        """Cumulative numbers of keys, and the largest number of a document."""
        if self.cu_seqlens_k is None:
            return self.cu_seqlens, self.max_seqlen
        return self.cu_seqlens_k, self.max_seqlen_k


_looked_for = masking_utils.find_packed_sequence_indices
# configurations, and windows, whose masks were looked at: once is enough, and costs a transfer
_CHECKED: set[tuple[int, int | None]] = set()
_PACKED: ContextVar[PackedDocuments | None] = ContextVar("packed", default=None)


@contextmanager
def packed(documents: PackedDocuments | None) -> Iterator[None]:
    """Attention within `documents` alone, in the forward passes inside this context."""
    token = _PACKED.set(documents)
    try:
        yield
    finally:
        _PACKED.reset(token)


def current() -> PackedDocuments | None:
    """The documents of the forward pass that is under way; None: its rows are padded."""
    return _PACKED.get()


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of `torch.utils.checkpoint`: recomputation sees the documents of its forward."""
    documents = _PACKED.get()
    return packed(documents), packed(documents)


def leave_documents_alone() -> None:
    """Keep transformers from looking for documents in the positions of a packed row.

    It would wait for the device once a forward pass, for borders that are known here.
    """
    if masking_utils.find_packed_sequence_indices is not _not_looked_for:
        masking_utils.find_packed_sequence_indices = _not_looked_for


def _not_looked_for(position_ids: torch.Tensor) -> torch.Tensor | None:
    return None if current() is not None else _looked_for(position_ids)


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """That of SDPA; in a packed row the window alone, or None without a window.

    The window is one whole number, (1, 1, 1, 1), on the CPU: models cut the tokens that they need
    out of a mask.

    Raises:
        ModelError: the mask of a packed row is not causal within a window.
    """
    documents = current()
    if documents is not None:
        _check_causal(kwargs.get("config"), mask_function, local_size, use_vmap, documents)
        return None if not local_size else torch.full((1, 1, 1, 1), local_size)
    mask: torch.Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        **kwargs,
    )
    return mask


def is_window(mask: torch.Tensor) -> bool:
    """Whether a mask is what `document_mask` gives for a packed row."""
    return mask.numel() == 1 and mask.dtype == torch.int64


def _check_causal(
    config: object,
    mask_function: Callable[..., Any],
    window: int | None,
    use_vmap: bool,
    documents: PackedDocuments,
) -> None:
    """Look at the edges of a mask: the next token, the one before, and those around the window.

    Raises:
        ModelError: the mask is not causal within a window.
    """
    # some models make a mask for windows of no width, which no layer uses
    if window == 0 or (id(config), window) in _CHECKED:
        return
    borders = documents.cu_seqlens.long()
    if documents.places is not None:
        borders = borders.new_tensor([0, documents.tokens])
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
            kind = getattr(config, "model_type", "")
            raise ModelError([refusal(kind, what, PADDED)])
    if config is not None:
        _CHECKED.add((id(config), window))
