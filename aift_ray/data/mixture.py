"""Which units of several sets make an epoch, as a function of seed and epoch.

Each set is an endless row of passes, every pass in an order of its own, and an epoch takes the next
so many units of it. So a set is gone through evenly, however its size and its share go together,
and a run that is resumed needs no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from aift_ray.config.mixture_config import MixedSet

Numbers = npt.NDArray[np.int64]

# no other order of a run is made from it
_STREAM = 2**31 + 1


def amounts(mixture: Sequence[MixedSet], rows: Sequence[int], units: Sequence[int]) -> list[int]:
    """Units that an epoch takes of each set.

    Args:
        rows: of each set.
        units: into which these were packed.
    """
    total, weights = sum(units), sum(each.weight or 0.0 for each in mixture)
    found = []
    for each, number, packed in zip(mixture, rows, units, strict=True):
        if each.weight is not None:
            wanted = total * each.weight / weights
        elif each.rows is not None:
            wanted = packed * each.rows / max(number, 1)
        else:
            wanted = packed * (each.epochs or 1.0)
        found.append(max(1, round(wanted)) if packed else 0)
    return found


@dataclass(frozen=True)
class Mixture:
    """How much of each set an epoch takes.

    Attributes:
        sizes: units of each set; those of a set come one after the other.
        amounts: units of each that an epoch takes.
    """

    sizes: tuple[int, ...]
    amounts: tuple[int, ...]
    seed: int

    @cached_property
    def total(self) -> int:
        """Units of an epoch."""
        return sum(self.amounts)

    def drawn(self, epoch: int) -> Numbers:
        """The units of an epoch, those of a set in their own order; some more than once."""
        found, first = [], 0
        for number, (size, amount) in enumerate(zip(self.sizes, self.amounts, strict=True)):
            found.append(first + self._of_set(number, size, epoch * amount, amount))
            first += size
        return np.concatenate(found)

    def _of_set(self, number: int, size: int, start: int, amount: int) -> Numbers:
        parts, end = [np.zeros(0, np.int64)], start + amount
        while start < end:
            passed, at = divmod(start, size)
            taken = min(size - at, end - start)
            rng = np.random.default_rng([self.seed, _STREAM, number, passed])
            # a whole pass is taken as it is: the steps have an order of their own
            order = np.arange(size) if taken == size else rng.permutation(size)[at : at + taken]
            parts.append(order)
            start += taken
        return np.sort(np.concatenate(parts))
