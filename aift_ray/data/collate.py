"""The tensors of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import pad

from aift_ray.data.context_share import ContextShare
from aift_ray.data.policy_targets import PolicyTargets
from aift_ray.data.preference_batch import Compared
from aift_ray.data.token_rows import Flags, Ids, TokenRows


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one micro-batch.

    Packed: `input_ids` (1, tokens); `position_ids` (1, tokens) restart at each document, and
    `cu_seqlens` (documents + 1,) are the cumulative lengths of the documents. Padded: `input_ids`
    and `attention_mask` (rows, longest), and no `cu_seqlens`. Packed with shared prompts: a prompt
    is in `input_ids` once, before the first of its answers.

    Attributes:
        label_positions: (labels,), flat positions in `input_ids` whose next token is a label.
        labels: (labels,), the token ids to predict there.
        max_seqlen: tokens of the longest document; 0: looked up, which waits for a device.
        sets: (targets,), the set of a mixture that each is of.
        set_losses: (sets,), to which the losses of each set are added, in double precision.
        compared: of answers that are compared with each other.
        policy: of generated completions.
        places, own: with shared prompts, as of `PackedDocuments`.
        context: of a row that is divided over workers, this worker's share; `input_ids`,
            `position_ids` and the labels are its own, `cu_seqlens` those of the row.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    label_positions: torch.Tensor
    labels: torch.Tensor
    max_seqlen: int = 0
    sets: torch.Tensor | None = None
    set_losses: torch.Tensor | None = None
    compared: Compared | None = None
    policy: PolicyTargets | None = None
    places: torch.Tensor | None = None
    own: torch.Tensor | None = None
    context: ContextShare | None = None

    def __post_init__(self) -> None:
        if self.max_seqlen:
            return
        borders = self.cu_seqlens
        longest = self.input_ids.shape[1] if borders is None else int(borders.diff().max())
        object.__setattr__(self, "max_seqlen", longest)

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on `device`; a GPU gets it while it computes something else."""

        def sent(value: torch.Tensor) -> torch.Tensor:
            # what is not pinned is waited for
            pinned = value.pin_memory() if device.type == "cuda" and not value.is_cuda else value
            return pinned.to(device, non_blocking=True)

        def moved(values: dict[str, Any]) -> dict[str, Any]:
            return {n: sent(v) if isinstance(v, torch.Tensor) else v for n, v in values.items()}

        batch = MicroBatch(**moved(vars(self)))
        compared = self.compared and Compared(**moved(vars(self.compared)))
        policy = self.policy and PolicyTargets(**moved(vars(self.policy)))
        context = self.context and self.context.changed(sent)
        return replace(batch, compared=compared, policy=policy, context=context)

    @property
    def weight(self) -> float:
        """What the loss is divided by, in all micro-batches of a step: targets, or comparisons.

        Of completions their share in the step, whose loss is divided already.
        """
        if self.policy is not None:
            return self.policy.share
        if self.context is not None:
            return self.context.row_labels
        if self.compared is None:
            return len(self.labels)
        return len(self.compared.lengths) // self.compared.each

    def document_lengths(self) -> torch.Tensor:
        """Tokens of the document that each token of `ids` belongs to; the same shape, float."""
        if self.context is not None:
            return self.context.lengths.unsqueeze(0)
        if self.cu_seqlens is None:
            assert self.attention_mask is not None
            return self.attention_mask.sum(1, keepdim=True).float().expand(self.input_ids.shape)
        lengths = self.cu_seqlens[1:] - self.cu_seqlens[:-1]
        each = lengths.repeat_interleave(lengths)
        return (each if self.own is None else each[self.own]).float().unsqueeze(0)


class RowSource(Protocol):
    """Token rows by number."""

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags of a row, each of shape (length,)."""


def collate(
    rows: RowSource,
    indices: Sequence[int],
    padded: bool,
    pad_id: int = 0,
    set_of: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    groups: Sequence[int] | None = None,
) -> MicroBatch:
    """Tensors of the rows `indices`; padding, where asked for, is on the right and masked.

    Args:
        set_of: the set of a mixture that each of all rows is of.
        reference: log-probabilities of all rows by the reference model, where answers are compared.
        groups: the group of each row, those of a group one after the other: what the prompts of a
            group begin with is computed once. None: each row has its own.
    """
    parts = [rows.row(index) for index in indices]
    lengths = [len(ids) for ids, _ in parts]
    width = max(lengths)
    starts = (
        [i * width for i in range(len(parts))] if padded else [0, *np.cumsum(lengths)[:-1].tolist()]
    )
    sources = np.concatenate(
        [np.flatnonzero(flags[1:]) + start for (_, flags), start in zip(parts, starts, strict=True)]
    )
    targets = np.concatenate([ids[1:][flags[1:] != 0] for ids, flags in parts])
    sets = None
    if set_of is not None:
        # int32 in the file, int64 where torch counts by it
        each = np.repeat(set_of[list(indices)], [np.count_nonzero(f[1:]) for _, f in parts])
        sets = torch.from_numpy(each.astype(np.int64))
    ends = np.array(starts) + np.array(lengths) - 1
    places, own = (None, None) if groups is None else _shared(parts, groups)
    if places is not None:
        sources, ends = places[sources], places[ends]
    flat = torch.from_numpy(sources.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))
    compared = None
    if reference is not None:
        assert isinstance(rows, TokenRows)
        compared = Compared.of(rows, list(indices), reference, ends)
    if not padded:
        ids = torch.from_numpy(np.concatenate([ids for ids, _ in parts]).astype(np.int64))
        positions = torch.cat([torch.arange(n) for n in lengths])
        borders = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
        laid = (ids[None], positions[None], None, borders, *flat)
        made = MicroBatch(*laid, sets=sets, max_seqlen=width, compared=compared)
        return made if places is None or own is None else _once(made, places, own)
    table = torch.full((len(parts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(table)
    for row, (tokens, _) in enumerate(parts):
        table[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, : len(tokens)] = 1
    positions = torch.arange(width).expand(len(parts), width)
    return MicroBatch(table, positions, mask, None, *flat, sets=sets, compared=compared)


def _once(batch: MicroBatch, places: np.ndarray, own: np.ndarray) -> MicroBatch:
    """The same documents, with the tokens that they share once in the row."""
    kept = torch.from_numpy(own)
    ids, positions = batch.input_ids[:, kept], batch.position_ids[:, kept]
    shared = torch.from_numpy(places)
    return replace(batch, input_ids=ids, position_ids=positions, places=shared, own=kept)


def rounded(batch: MicroBatch, multiple: int, pad_id: int) -> MicroBatch:
    """A packed batch whose row ends with a document of padding, to a multiple of so many tokens."""
    assert batch.cu_seqlens is not None
    tokens = batch.input_ids.shape[1]
    missing = -tokens % multiple
    if not missing:
        return batch
    end, more = int(batch.cu_seqlens[-1]), torch.arange(missing)
    places, own = batch.places, batch.own
    return replace(
        batch,
        input_ids=pad(batch.input_ids, (0, missing), value=pad_id),
        position_ids=torch.cat([batch.position_ids, more[None]], dim=1),
        cu_seqlens=pad(batch.cu_seqlens, (0, 1), value=end + missing),
        max_seqlen=max(batch.max_seqlen, missing),
        places=None if places is None else torch.cat([places, tokens + more]),
        own=None if own is None else torch.cat([own, end + more]),
    )


def _shared(
    parts: Sequence[tuple[Ids, Flags]], groups: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """`places` and `own` of rows that begin with the prompt of the first one of their group."""
    places: list[np.ndarray] = []
    taken = first = 0
    for number, (ids, flags) in enumerate(parts):
        before = np.zeros(0, np.int64)
        if groups[number] != groups[first]:
            first = number
        if number > first:
            other, trained = parts[first]
            most = min(int(flags.argmax()), int(trained.argmax()))
            differ = np.flatnonzero(ids[:most] != other[:most])
            before = places[first][: differ[0] if len(differ) else most]
        new = np.arange(taken, taken + len(ids) - len(before))
        places.append(np.concatenate([before, new]))
        taken += len(new)
    found = np.concatenate(places)
    return found, np.unique(found, return_index=True)[1]
