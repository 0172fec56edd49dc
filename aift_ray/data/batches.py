"""Which rows make which step, and the tensors of a micro-batch.

The order of the rows is a function of seed and epoch, and the global batch a function of the
step alone: however it is spread over workers and micro-steps, and wherever a run is resumed, the
same rows make the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from aift_ray.config.mixture import MixedSet
from aift_ray.data.mixture import Mixture, amounts
from aift_ray.data.packing import best_fit
from aift_ray.data.token_rows import Flags, Ids


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch.

    Laid end to end: `ids` (1, tokens), `positions` (1, tokens) restart at each document and
    `borders` (documents + 1,) are their cumulative lengths. Padded: `ids` and `mask`
    (rows, longest), and no borders.

    Attributes:
        sources: (targets,), flat positions in `ids` whose next token is a target.
        targets: (targets,), the token ids to predict there.
        longest: tokens of the longest document; 0: looked up, which waits for a device.
        sets: (targets,), the set of a mixture that each is of.
        set_losses: (sets,), to which the losses of each set are added, in double precision.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    borders: torch.Tensor | None
    sources: torch.Tensor
    targets: torch.Tensor
    longest: int = 0
    sets: torch.Tensor | None = None
    set_losses: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.longest:
            return
        borders = self.borders
        longest = self.ids.shape[1] if borders is None else int(borders.diff().max())
        object.__setattr__(self, "longest", longest)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; a GPU gets it while it computes something else."""

        def sent(value: torch.Tensor) -> torch.Tensor:
            # what is not pinned is waited for
            pinned = value.pin_memory() if device.type == "cuda" and not value.is_cuda else value
            return pinned.to(device, non_blocking=True)

        moved: dict[str, Any] = {
            name: sent(value) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)

    def document_lengths(self) -> torch.Tensor:
        """Tokens of the document that each token of `ids` belongs to; the same shape, float."""
        if self.borders is None:
            assert self.mask is not None
            return self.mask.sum(1, keepdim=True).float().expand(self.ids.shape)
        lengths = self.borders[1:] - self.borders[:-1]
        return lengths.repeat_interleave(lengths).float().unsqueeze(0)


class Rows(Protocol):
    """Token rows by number."""

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags of a row, each of shape (length,)."""


def collate(
    rows: Rows,
    indices: Sequence[int],
    padded: bool,
    pad_id: int = 0,
    set_of: np.ndarray | None = None,
) -> Batch:
    """Tensors of the rows `indices`; padding, where asked for, is on the right and masked.

    Args:
        set_of: the set of a mixture that each of all rows is of.
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
    flat = torch.from_numpy(sources.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))
    if not padded:
        ids = torch.from_numpy(np.concatenate([ids for ids, _ in parts]).astype(np.int64))
        positions = torch.cat([torch.arange(n) for n in lengths])
        borders = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
        return Batch(ids[None], positions[None], None, borders, *flat, sets=sets, longest=width)
    table = torch.full((len(parts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(table)
    for row, (tokens, _) in enumerate(parts):
        table[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, : len(tokens)] = 1
    positions = torch.arange(width).expand(len(parts), width)
    return Batch(table, positions, mask, None, *flat, sets=sets)


@dataclass(frozen=True)
class BatchPlan:
    """The steps of a run.

    Attributes:
        lengths, targets: of the rows that are trained, shape (rows,).
        indices: their indices in the token rows, shape (rows,).
        batch_size: units (examples, or filled rows) a micro-step and worker.
        global_batch: units a step.
        capacity: tokens of a filled row; None where a unit is one example.
        sets: the set of a mixture that each row is of, shape (rows,); None without a mixture.
        mixed: the sets, as they are configured.
    """

    lengths: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    batch_size: int
    global_batch: int
    seed: int
    capacity: int | None = None
    sets: np.ndarray | None = None
    mixed: tuple[MixedSet, ...] = ()

    @cached_property
    def units(self) -> list[list[int]]:
        """Positions in `indices` that go together, in the order before shuffling."""
        return [unit for units in self._units_of_sets for unit in units]

    @cached_property
    def _units_of_sets(self) -> list[list[list[int]]]:
        everything = np.arange(len(self.indices))
        if self.sets is None:
            return [self._packed(everything, 0)]
        numbers = range(len(self.mixed))
        return [self._packed(everything[self.sets == number], number) for number in numbers]

    def _packed(self, rows: np.ndarray, number: int) -> list[list[int]]:
        """The units of a set: each row by itself, or rows that share a filled one."""
        if self.capacity is None:
            return [[row] for row in rows.tolist()]
        entropy = [self.seed, 0, number] if number else [self.seed, 0]
        order = np.random.default_rng(entropy).permutation(len(rows))
        return best_fit(self.lengths.tolist(), rows[order].tolist(), self.capacity)

    @cached_property
    def mixture(self) -> Mixture | None:
        """How much of each set an epoch takes; None where it takes all rows once."""
        if self.sets is None:
            return None
        sizes = [len(units) for units in self._units_of_sets]
        rows = np.bincount(self.sets, minlength=len(self.mixed)).tolist()
        return Mixture(tuple(sizes), tuple(amounts(self.mixed, rows, sizes)), self.seed)

    @property
    def units_per_epoch(self) -> int:
        """Units that an epoch takes; of a mixture, some more than once or not at all."""
        return self.mixture.total if self.mixture else len(self.units)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass; the last one may be smaller than the others."""
        return -(-self.units_per_epoch // self.global_batch)

    def epoch(self, step: int) -> float:
        """Passes over the data that are behind after `step` steps."""
        whole, rest = divmod(step, self.steps_per_epoch)
        return whole + rest / self.steps_per_epoch

    def global_units(self, step: int) -> list[list[int]]:
        """Units of the step with index `step` (from 0), longest first."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self._shuffled(epoch)[number * self.global_batch : (number + 1) * self.global_batch]
        units = [self.units[int(u)] for u in order]
        return sorted(units, key=lambda unit: -int(self.lengths[unit].sum()))

    def step_targets(self, step: int) -> int:
        """Supervised tokens of the whole global batch."""
        return sum(int(self.targets[unit].sum()) for unit in self.global_units(step))

    def set_targets(self, step: int) -> list[int]:
        """Supervised tokens of each set of the mixture in the whole global batch."""
        assert self.sets is not None
        rows = [row for unit in self.global_units(step) for row in unit]
        found = np.bincount(self.sets[rows], self.targets[rows], len(self.mixed))
        return [int(number) for number in found]

    def share(self, step: int, rank: int, world: int) -> list[list[int]]:
        """Micro-batches of one worker: token-row indices; an empty one where no unit is left.

        Units are dealt longest first, back and forth over the slots (micro-steps x workers), so
        that no worker waits long for another.
        """
        units = self.global_units(step)
        micro_steps = -(-len(units) // (self.batch_size * world))
        slots: list[list[int]] = [[] for _ in range(micro_steps * world)]
        for number, unit in enumerate(units):
            round_, at = divmod(number, len(slots))
            slot = slots[at if round_ % 2 == 0 else len(slots) - 1 - at]
            slot += unit
        return [
            [int(self.indices[row]) for row in sorted(slots[micro * world + rank])]
            for micro in range(micro_steps)
        ]

    def longest_micro_batch(self) -> list[int]:
        """Token-row indices of a micro-batch at least as long as any that will come."""
        units = sorted(self.units, key=lambda unit: -int(self.lengths[unit].sum()))
        return [int(self.indices[row]) for unit in units[: self.batch_size] for row in unit]

    def _shuffled(self, epoch: int) -> np.ndarray:
        # one epoch is kept: permuting a million units a step would cost more than the step
        if self._kept.get("epoch") != epoch:
            rng = np.random.default_rng([self.seed, 1 + epoch])
            shuffled = rng.permutation(self.units_per_epoch)
            if self.mixture:
                shuffled = self.mixture.drawn(epoch)[shuffled]
            self._kept.update(epoch=epoch, order=shuffled)
        order: np.ndarray = self._kept["order"]
        return order

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {}
