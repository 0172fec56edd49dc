"""Filled rows hold every example once, never too much, and are the same each time."""

from __future__ import annotations

import random

import pytest

from aift_ray.data.packing import best_fit


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_every_example_once_and_fit(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 100) for _ in range(500)]
    order = list(range(500))
    rng.shuffle(order)
    rows = best_fit(lengths, order, 128, window=200)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 128
    assert rows == best_fit(lengths, order, 128, window=200)


def test_rows_are_nearly_full() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(10, 400) for _ in range(4000)]
    rows = best_fit(lengths, range(4000), 1024)
    assert sum(lengths) / (len(rows) * 1024) > 0.98


def test_an_example_goes_into_the_fullest_row_that_takes_it() -> None:
    assert best_fit([60, 50, 30, 40], [0, 1, 2, 3], 100) == [[0, 3], [1, 2]]
