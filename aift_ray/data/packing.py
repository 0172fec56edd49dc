"""Filling rows: which examples share a packed row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

WINDOW = 4096


def best_fit(
    lengths: Sequence[int], order: Sequence[int], capacity: int, window: int = WINDOW
) -> list[list[int]]:
    """Put examples into rows of at most `capacity` tokens, by best fit.

    Within each window of `order` the examples go longest first, each into the fullest row that
    still takes it. The result depends on nothing but the arguments.

    Args:
        lengths: tokens of each example.
        order: indices into `lengths`, in the order in which they come.
        capacity: tokens a row; no example may be longer.
        window: examples looked at together.

    Returns:
        rows, each a list of indices.
    """
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        rows += _fill(lengths, order[start : start + window], capacity)
    return rows


def _fill(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    # open rows as (free tokens, row number), sorted: the first that is free enough is the fullest
    free: list[tuple[int, int]] = []
    for index in sorted(order, key=lambda i: -int(lengths[i])):
        needed = int(lengths[index])
        at = bisect.bisect_left(free, (needed, -1))
        if at < len(free):
            left, row = free.pop(at)
            rows[row].append(index)
        else:
            left, row = capacity, len(rows)
            rows.append([index])
        bisect.insort(free, (left - needed, row))
    return rows
