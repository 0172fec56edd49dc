"""What an epoch takes of several sets: a function of seed and epoch, even over time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from aift_ray.commandline import validated
from aift_ray.config import MixedSet
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.mixture import Mixture, amounts
from aift_ray.errors import ConfigError

SIZES = (40, 7, 100)


def mixed(*values: dict[str, Any]) -> list[MixedSet]:
    return [MixedSet(files=[f"{n}.jsonl"], **each) for n, each in enumerate(values)]


def plan(sets: list[MixedSet] | None, capacity: int | None = None, seed: int = 5) -> BatchPlan:
    number = sum(SIZES)
    rng = np.random.default_rng(0)
    lengths, indices = rng.integers(4, 60, number).astype(np.int32), np.arange(number)
    set_of = np.repeat(np.arange(len(SIZES)), SIZES)
    if sets is not None and len(sets) == 1:
        set_of[:] = 0
    given = (None, ()) if sets is None else (set_of, tuple(sets))
    return BatchPlan(lengths, lengths // 2, indices, 2, 8, seed, capacity, *given)


@pytest.mark.parametrize("capacity", [None, 64])
@pytest.mark.parametrize("amount", [{}, {"weight": 3.0}, {"epochs": 1.0}, {"rows": sum(SIZES)}])
def test_a_mixture_of_one_set_makes_the_steps_of_the_set(
    capacity: int | None, amount: dict[str, Any]
) -> None:
    one, plain = plan(mixed(amount), capacity), plan(None, capacity)
    assert one.steps_per_epoch == plain.steps_per_epoch
    for step in range(3 * plain.steps_per_epoch):
        for rank in range(2):
            assert one.share(step, rank, 2) == plain.share(step, rank, 2)


def test_weights_are_shares_of_the_examples() -> None:
    sets = mixed({"weight": 1}, {"weight": 1}, {"weight": 2})
    made = plan(sets)
    assert made.mixture is not None
    assert made.mixture.amounts == (37, 37, 74)
    assert made.steps_per_epoch == -(-148 // 8)


def test_rows_and_epochs_say_how_much_an_epoch_takes() -> None:
    sets = mixed({"rows": 10}, {"epochs": 3}, {"epochs": 0.5})
    assert amounts(sets, SIZES, SIZES) == [10, 21, 50]
    # filled rows: ten of forty rows are a quarter of them
    assert amounts(sets, SIZES, (12, 2, 30)) == [3, 6, 15]


@pytest.mark.parametrize("amount", [(10, 21, 50), (40, 7, 100), (3, 1, 1)])
def test_a_set_is_gone_through_evenly(amount: tuple[int, ...]) -> None:
    mixture = Mixture(SIZES, amount, 3)
    seen: Counter[int] = Counter()
    for epoch in range(40):
        drawn = mixture.drawn(epoch)
        assert len(drawn) == sum(amount)
        seen.update(drawn.tolist())
        first = 0
        for size, taken in zip(SIZES, amount, strict=True):
            numbers = [seen[unit] for unit in range(first, first + size)]
            assert sum(numbers) == taken * (epoch + 1)
            assert max(numbers) - min(numbers) <= 1
            first += size


def test_the_units_of_a_step_depend_on_seed_and_step_alone() -> None:
    sets = mixed({"weight": 1}, {"weight": 1}, {"weight": 5})
    first, second = plan(sets, 64), plan(sets, 64)
    steps = range(2 * first.steps_per_epoch)
    forward = [first.global_units(step) for step in steps]
    assert [second.global_units(step) for step in reversed(steps)][::-1] == forward
    assert [plan(sets, 64, seed=6).global_units(step) for step in steps] != forward
    assert first.sets is not None
    for unit in first.units:
        assert len(set(first.sets[unit].tolist())) == 1
    for step in steps:
        assert sum(first.set_weights(step)) == first.step_targets(step)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"mixture": [{"files": ["a"]}], "train_files": ["b"]}, "data.train_files"),
        ({"mixture": [{"files": ["a"], "weight": 1, "rows": 3}]}, "data.mixture.0"),
        ({"mixture": [{"files": ["a"], "weight": 1}, {"files": ["b"]}]}, "data.mixture"),
        ({"mixture": [{"files": ["x/a"]}, {"files": ["y/a"]}]}, "data.mixture"),
        ({"mixture": [{"files": []}]}, "data.mixture.files"),
        ({"mixture": [{"files": ["a"], "weight": 0}]}, "data.mixture.weight"),
        ({"mixture": [{"file": ["a"]}]}, "data.mixture"),
    ],
)
def test_a_wrong_mixture_is_refused(data: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as error:
        validated({"data": data})
    assert any(problem.where.startswith(where) for problem in error.value.problems)
