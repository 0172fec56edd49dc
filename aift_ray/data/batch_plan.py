"""Which rows make which step, and which micro-batch of which worker.

The order of the rows is a function of seed and epoch, and the global batch a function of the
step alone: however it is spread over workers and micro-steps, and wherever a run is resumed, the
same rows make the same step.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from aift_ray.config.mixture_config import MixedSet
from aift_ray.data.mixture import Mixture, amounts
from aift_ray.data.packing import best_fit

# steps of which the tokens of a micro-step are told
_LOOKED_AT = 32


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
        together: rows, one after the other, that a unit has at least: 2 where answers are compared.
        tokens: of a micro-step and worker at most, in place of `batch_size`; a longer unit is one
            by itself.
        padded: whether rows are padded to the longest of their micro-batch.
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
    together: int = 1
    tokens: int | None = None
    padded: bool = False

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
        least = rows.reshape(-1, self.together)
        if self.capacity is None:
            found: list[list[int]] = least.tolist()
            return found
        entropy = [self.seed, 0, number] if number else [self.seed, 0]
        order = np.random.default_rng(entropy).permutation(len(least))
        lengths = self.lengths[least].sum(1)
        filled = best_fit(lengths.tolist(), order.tolist(), self.capacity * self.together)
        return [least[unit].flatten().tolist() for unit in filled]

    @cached_property
    def mixture(self) -> Mixture | None:
        """How much of each set an epoch takes; None where it takes all rows once."""
        if self.sets is None:
            return None
        sizes = [len(units) for units in self._units_of_sets]
        rows = (np.bincount(self.sets, minlength=len(self.mixed)) // self.together).tolist()
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

    def step_weight(self, step: int) -> int:
        """What the summed loss of the global batch is divided by: its targets, or comparisons."""
        if self.together == 1:
            return self.step_targets(step)
        return sum(map(len, self.global_units(step))) // self.together

    def set_weights(self, step: int) -> list[int]:
        """What each set of the mixture has of `step_weight`: targets, or comparisons."""
        assert self.sets is not None
        rows = [row for unit in self.global_units(step) for row in unit]
        if self.together == 1:
            found = np.bincount(self.sets[rows], self.targets[rows], len(self.mixed))
        else:
            found = np.bincount(self.sets[rows], minlength=len(self.mixed)) // self.together
        return [int(number) for number in found]

    def share(self, step: int, rank: int, world: int) -> list[list[int]]:
        """Micro-batches of one worker: token-row indices; an empty one where no unit is left.

        Units are dealt longest first, back and forth over the slots (micro-steps x workers), so
        that no worker waits long for another; where `tokens` are given, each to the slot that has
        least, of as few slots as hold them.
        """
        slots = self._slots(self.global_units(step), world)
        return [[int(self.indices[row]) for row in sorted(slot)] for slot in slots[rank::world]]

    def _slots(self, units: list[list[int]], world: int) -> list[list[int]]:
        """The rows of each worker of the first micro-step, then of the next."""
        if self.tokens is None:
            return self._dealt(units, -(-len(units) // (self.batch_size * world)) * world)
        most = max(self.tokens, self._size(units[0]))
        steps = max(1, sum(map(self._size, units)) // (most * world))
        while True:
            slots = self._balanced(units, steps * world)
            if max(map(self._size, slots)) <= most:
                return slots
            steps += 1

    def _dealt(self, units: list[list[int]], number: int) -> list[list[int]]:
        slots: list[list[int]] = [[] for _ in range(number)]
        for at, unit in enumerate(units):
            round_, place = divmod(at, number)
            slots[place if round_ % 2 == 0 else number - 1 - place] += unit
        return slots

    def _balanced(self, units: list[list[int]], number: int) -> list[list[int]]:
        """Each unit, longest first, where there is least so far."""
        slots: list[list[int]] = [[] for _ in range(number)]
        # (tokens, place)
        loads = [(0, at) for at in range(number)]
        for unit in units:
            _, at = loads[0]
            slots[at] += unit
            heapq.heapreplace(loads, (self._size(slots[at]), at))
        return slots

    def _size(self, rows: list[int]) -> int:
        """Tokens that rows take in a micro-batch, padding included."""
        lengths = self.lengths[rows]
        if not rows:
            return 0
        return int(len(rows) * lengths.max() if self.padded else lengths.sum())

    def longest_micro_batch(self) -> list[int]:
        """Token-row indices of a micro-batch at least as long as any that will come."""
        units = sorted(self.units, key=lambda unit: -int(self.lengths[unit].sum()))
        if self.tokens is None:
            chosen = units[: self.batch_size]
        else:
            chosen = units[:1]
            for unit in units[1 : self.global_batch]:
                if self._size([row for unit in chosen for row in unit]) >= self.tokens:
                    break
                chosen.append(unit)
        return [int(self.indices[row]) for unit in chosen for row in unit]

    def most_targets(self) -> int:
        """Supervised tokens that a micro-batch has at most."""
        largest = self.longest_micro_batch()
        if self.tokens is None:
            return int(np.sort(self.targets)[-len(largest) :].sum())
        order = np.argsort(-self.targets / self.lengths)
        before = np.cumsum(self.lengths[order]) - self.lengths[order]
        most = max(self.tokens, int(self.lengths.max()) * self.together)
        return int(self.targets[order][before < most].sum())

    def tokens_per_micro_step(self, world: int) -> float:
        """Tokens of a worker and micro-step in the first steps, on average."""
        numbers = range(min(_LOOKED_AT, self.steps_per_epoch))
        found = [self._slots(self.global_units(number), world) for number in numbers]
        tokens = sum(int(self.lengths[slot].sum()) for slots in found for slot in slots)
        return tokens / sum(map(len, found))

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
