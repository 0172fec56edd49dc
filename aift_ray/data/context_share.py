"""A packed row divided over several workers: which tokens are whose, and what they attend.

The row is cut into twice as many chunks as there are workers, and worker r has chunk r and the
r-th from the end: of causal attention each has as much to compute as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from aift_ray.data.collate import MicroBatch

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ContextChunk:
    """Consecutive tokens of a worker, with the documents that they belong to.

    Attributes:
        start, end: their places in the row.
        first_key: where the first of these documents begins: keys from there to `end` are attended.
        cu_seqlens, cu_seqlens_k: (documents + 1,), int32, cumulative numbers of tokens of each
            document here, and of keys.
        max_seqlen, max_seqlen_k: the largest of these numbers of a document.
    """

    start: int
    end: int
    first_key: int
    cu_seqlens: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen: int
    max_seqlen_k: int

    @classmethod
    def of(cls, start: int, end: int, borders: list[int]) -> ContextChunk:
        """The tokens `start` to `end` of a row of documents with `borders`."""
        inside = [border for border in borders if start < border < end]
        ends = torch.tensor([*inside, end])
        first = max(border for border in borders if border <= start)
        queries, keys = torch.tensor([start, *inside]), torch.tensor([first, *inside])
        return cls(
            start,
            end,
            first,
            pad(ends - start, (1, 0)).int(),
            pad(ends - first, (1, 0)).int(),
            int((ends - queries).max()),
            int((ends - keys).max()),
        )


@dataclass(frozen=True)
class ContextShare:
    """A worker's share of a packed row.

    Attributes:
        chunks: its tokens, in the order of its `input_ids`.
        row_labels: labels of the whole row.
        lengths: (tokens,), tokens of the document that each of its tokens belongs to.
    """

    chunks: tuple[ContextChunk, ...]
    row_labels: int
    lengths: torch.Tensor

    def changed(self, change: Change) -> ContextShare:
        """The same with each tensor changed."""
        chunks = [
            replace(
                each,
                cu_seqlens=change(each.cu_seqlens),
                cu_seqlens_k=change(each.cu_seqlens_k),
            )
            for each in self.chunks
        ]
        return replace(self, chunks=tuple(chunks), lengths=change(self.lengths))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Its tensors."""
        yield self.lengths
        for each in self.chunks:
            yield from (each.cu_seqlens, each.cu_seqlens_k)


def own_share(batch: MicroBatch, rank: int, size: int, pad_id: int) -> MicroBatch:
    """The tokens and labels of worker `rank` of `size` that divide a packed batch in host memory.

    All workers have as many tokens: the row is filled up by a document of padding without labels.
    """
    if size == 1:
        return batch
    assert batch.cu_seqlens is not None
    assert batch.places is None
    each = -(-batch.input_ids.shape[1] // (2 * size))
    missing = 2 * size * each - batch.input_ids.shape[1]
    borders = batch.cu_seqlens.tolist() + [2 * size * each] * (missing > 0)
    ids = pad(batch.input_ids, (0, missing), value=pad_id)
    positions = torch.cat([batch.position_ids, torch.arange(missing)[None]], dim=1)
    starts = (rank * each, (2 * size - 1 - rank) * each)
    own = torch.cat([torch.arange(start, start + each) for start in starts])
    place = torch.full((2 * size * each,), -1)
    place[own] = torch.arange(len(own))
    at = place[batch.label_positions]
    kept = at >= 0
    lengths = torch.tensor(borders).diff()
    chunks = tuple(ContextChunk.of(start, start + each, borders) for start in starts)
    share = ContextShare(chunks, len(batch.labels), lengths.repeat_interleave(lengths)[own].float())
    return replace(
        batch,
        input_ids=ids[:, own],
        position_ids=positions[:, own],
        cu_seqlens=torch.tensor(borders, dtype=torch.int32),
        label_positions=at[kept],
        labels=batch.labels[kept],
        sets=None if batch.sets is None else batch.sets[kept],
        context=share,
    )
