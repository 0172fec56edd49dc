"""Intervals and tests against exact enumeration and simulation."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from math import comb

import numpy as np
import pytest

from aift_ray.tasks.scores import moments
from aift_ray.tasks.statistics import difference, estimate, holm


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(3), 0
    for trial in range(200):
        rows = [(float(x), 1.0) for x in rng.random(120) < 0.3]
        found = estimate("accuracy", rows, 0.9, 400, trial)
        covered += found.low <= 0.3 <= found.high
    # 180 expected; four standard deviations
    assert 163 <= covered <= 197


def test_p_is_that_of_all_sign_flips() -> None:
    gaps = [0.5, 0.25, -0.25, 1.0, 0.75, 0.5, -0.125, 0.375]
    total = abs(sum(gaps))
    signs = list(product((-1, 1), repeat=len(gaps)))
    exact = sum(abs(np.dot(s, gaps)) >= total - 1e-12 for s in signs) / len(signs)
    first = [(0.0, 1.0)] * len(gaps)
    second = [(gap, 1.0) for gap in gaps]
    found = difference("rouge_l", first, second, 0.95, 40_000, 0)
    assert found.p == pytest.approx(exact, abs=0.005)


def test_equal_answers_are_no_difference_as_far_as_so_many_rows_can_tell() -> None:
    rows = [(float(at % 2), 1.0) for at in range(50)]
    found = difference("accuracy", rows, rows, 0.95, 500, 0)
    assert (found.value, found.p, found.interval) == (0.0, 1.0, "clopper-pearson")
    assert -found.low == found.high == pytest.approx(clopper_pearson(0, 50)[1])
    other = difference("perplexity", rows, rows, 0.95, 500, 0)
    assert (other.low, other.high, other.interval) == (0.0, 0.0, "bootstrap")


def clopper_pearson(right: int, rows: int) -> tuple[float, float]:
    """By bisection of the binomial distribution's tails, at 95%."""

    def tail(share: float, numbers: range) -> float:
        return sum(comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in numbers)

    def edge(numbers: range, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if (tail(middle, numbers) < 0.025) == rising:
                low = middle
            else:
                high = middle
        return low

    least = edge(range(right, rows + 1), True) if right else 0.0
    most = edge(range(right + 1), False) if right < rows else 1.0
    return least, most


@pytest.mark.parametrize(("right", "rows"), [(5, 5), (0, 5), (1, 1), (0, 1), (40, 40)])
def test_rows_that_are_all_right_or_wrong_leave_room(right: int, rows: int) -> None:
    for name in ("accuracy", "character_f1", "acc_norm"):
        found = estimate(name, [(float(right > 0), 1.0)] * rows, 0.95, 500, 0)
        assert (found.low, found.high) == pytest.approx(clopper_pearson(right, rows))
        assert found.interval == "clopper-pearson"
    assert estimate("accuracy", [(1.0, 1.0), (0.0, 1.0)], 0.95, 500, 0).interval == "bootstrap"


def test_that_room_is_enough_for_scores_between_0_and_1() -> None:
    rng, missed = np.random.default_rng(11), 0
    for trial in range(400):
        # 1 with a probability of 0.8, else 0.9: the mean is 0.98
        rows = [(1.0 if x < 0.8 else 0.9, 1.0) for x in rng.random(4)]
        found = estimate("character_f1", rows, 0.95, 100, trial)
        missed += found.interval == "clopper-pearson" and not found.low <= 0.98 <= found.high
    assert missed == 0


def test_differences_of_all_rows_leave_room() -> None:
    worse, better = [(0.0, 1.0)] * 5, [(1.0, 1.0)] * 5
    least = clopper_pearson(5, 5)[0]
    found = difference("accuracy", worse, better, 0.95, 500, 0)
    assert (found.low, found.high) == pytest.approx((2 * least - 1, 1.0))
    found = difference("accuracy", better, worse, 0.95, 500, 0)
    assert (found.low, found.high) == pytest.approx((-1.0, 1 - 2 * least))
    found = difference("judge_win_rate", [(0.5, 1.0)] * 5, better, 0.95, 500, 0)
    assert (found.low, found.high) == pytest.approx((least - 0.5, 0.5))
    found = difference("of_harness", [(30.0, 1.0)] * 5, [(30.0, 1.0)] * 5, 0.95, 500, 0)
    assert found.interval == "bootstrap"


def test_false_alarms_are_as_rare_as_the_level() -> None:
    rng, alarms = np.random.default_rng(5), 0
    for trial in range(300):
        a, b = ([(float(x), 1.0) for x in rng.random(60) < 0.5] for _ in range(2))
        alarms += difference("accuracy", a, b, 0.95, 300, trial).p < 0.05
    assert alarms <= 28


def test_holm_by_hand() -> None:
    # 3 x 0.01, 2 x 0.04, then not below the one before
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_less_is_better_where_it_is() -> None:
    first = [(10.0, 5.0)] * 40
    second = [(8.0 - 0.01 * at, 5.0) for at in range(40)]
    found = difference("bits_per_character", first, second, 0.95, 1000, 0)
    told = type(found)(**{**vars(found), "p_adjusted": found.p})
    assert found.value < 0
    assert told.better("bits_per_character", 0.05) is True
    assert told.better("rouge_l", 0.05) is False
    unclear = type(found)(**{**vars(found), "p_adjusted": 0.2})
    assert unclear.better("rouge_l", 0.05) is None


def test_a_correlation_is_numpys_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(7)
    right = rng.uniform(0, 5, 150)
    given = 0.6 * right + rng.normal(0, 1, 150)
    rows = [moments(Decimal(str(x)), Decimal(str(y))) for x, y in zip(given, right, strict=True)]
    found = estimate("pearson", rows, 0.95, 500, 0)
    assert found.value == pytest.approx(np.corrcoef(given, right)[0, 1])
    assert found.low < found.value < found.high
    noise = [
        moments(Decimal(str(x)), Decimal(str(y)))
        for x, y in zip(rng.permutation(given), right, strict=True)
    ]
    worse = difference("pearson", rows, noise, 0.95, 500, 0)
    assert worse.value < -0.3
    assert worse.p < 0.01
    # answers without a number count as -1
    assert moments(None, Decimal(3))[1] == -1.0
    assert (
        estimate("pearson", [moments(None, Decimal(y)) for y in range(5)], 0.95, 100, 0).value
        == 0.0
    )
