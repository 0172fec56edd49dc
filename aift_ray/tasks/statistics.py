"""Intervals of scores and tests of their differences, by resampling rows.

Rows that are all at one end of a score, such as five right answers of five, are alike in every
resample. Their interval is Clopper and Pearson's (1934), which at the ends has a closed form and
holds for every score between 0 and 1: n rows all score 1 with a probability of mean**n at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aift_ray.config.tasks_config import LOWER_IS_BETTER
from aift_ray.tasks.scores import Score, aggregate

_CHUNK = 256
BOOTSTRAP, EXACT = "bootstrap", "clopper-pearson"


@dataclass(frozen=True)
class Estimate:
    """A score of a task.

    Attributes:
        low, high: of the interval.
        rows: that it is computed from.
        interval: how it is computed: `bootstrap` (percentiles), or `clopper-pearson` where every
            row is at the same end of the score.
    """

    value: float
    low: float
    high: float
    rows: int
    interval: str = BOOTSTRAP


@dataclass(frozen=True)
class Difference:
    """Between two models on the same rows, the second less the first.

    Attributes:
        low, high: of the paired interval.
        p: of the two-sided sign-flip (paired permutation) test that there is none.
        p_adjusted: after Holm's correction over all comparisons of an evaluation.
        interval: `bootstrap`, or `clopper-pearson` where no row differs, or all do as far as rows
            can.
    """

    value: float
    low: float
    high: float
    p: float
    p_adjusted: float = float("nan")
    interval: str = BOOTSTRAP

    def better(self, name: str, level: float) -> bool | None:
        """Whether the second model is better; None where the rows can't tell."""
        if not self.p_adjusted < level or self.value == 0:
            return None
        return (self.value > 0) != (name in LOWER_IS_BETTER)


def estimate(
    name: str, scores: Sequence[Score], confidence: float, resamples: int, seed: int
) -> Estimate:
    """The score of a task with its interval, over the rows that have one."""
    table = np.asarray(scores, dtype=np.float64)
    table = table[_has_score(name, table)]
    value = aggregate(name, *table.sum(0))
    if _all_at(name, table, 0.0):
        return Estimate(value, 0.0, 1 - _least(len(table), confidence), len(table), EXACT)
    if _all_at(name, table, 1.0):
        return Estimate(value, _least(len(table), confidence), 1.0, len(table), EXACT)
    drawn = _resampled([table], resamples, seed)[0]
    values = [aggregate(name, *sums) for sums in drawn]
    low, high = _interval(values, confidence)
    return Estimate(value, low, high, len(table))


def difference(
    name: str,
    first: Sequence[Score],
    second: Sequence[Score],
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """How far the second model is from the first, row for row."""
    a, b = (np.asarray(scores, dtype=np.float64) for scores in (first, second))
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} rows can't be compared row for row")
    # a row without a score, of which a judge said nothing, is compared with none
    both = _has_score(name, a) & _has_score(name, b)
    a, b = a[both], b[both]
    if not len(a):
        return Difference(0.0, 0.0, 0.0, 1.0)
    value = aggregate(name, *b.sum(0)) - aggregate(name, *a.sum(0))
    # weights are those of the rows, so the same for both models unless their tokenizers differ
    gaps = _contributions(name, b) - _contributions(name, a)
    p = _sign_flips(gaps, resamples, seed)
    if ends := _ends_of_difference(name, a, b, confidence):
        return Difference(value, *ends, p, interval=EXACT)
    drawn_a, drawn_b = _resampled([a, b], resamples, seed)
    values = [
        aggregate(name, *after) - aggregate(name, *before)
        for before, after in zip(drawn_a, drawn_b, strict=True)
    ]
    low, high = _interval(values, confidence)
    return Difference(value, low, high, p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction, in the same order."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    found, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, values[at] * (len(values) - rank)))
        found[at] = highest
    return found


def _all_at(name: str, table: npt.NDArray[np.float64], end: float) -> bool:
    """Whether every row has the score 0, or 1."""
    if name == "pearson" or name in LOWER_IS_BETTER or not len(table):
        return False
    return bool((table[:, 0] == end * table[:, 1]).all())


def _least(rows: int, confidence: float) -> float:
    """The lower end of the interval of a score of 1 in every row."""
    return float(((1 - confidence) / 2) ** (1 / rows))


def _ends_of_difference(
    name: str, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], confidence: float
) -> tuple[float, float] | None:
    """The interval of a difference that is 0 in all rows, or 1, or -1; None: of another."""
    if name == "pearson" or name in LOWER_IS_BETTER:
        return None
    scores = np.concatenate([part[:, 0] / part[:, 1] for part in (a, b)])
    if scores.min() < 0 or scores.max() > 1:
        # of the harness, whose metrics may be of any size
        return None
    least = _least(len(a), confidence)
    gaps = scores[len(a) :] - scores[: len(a)]
    if name == "judge_win_rate" and np.isin(scores[len(a) :], end := scores[-1]).all():
        # of the first model it is 0.5 by definition
        return {0.0: (-0.5, 0.5 - least), 1.0: (least - 0.5, 0.5)}.get(float(end))
    if not gaps.any():
        return least - 1, 1 - least
    if (gaps == 1).all():
        return 2 * least - 1, 1.0
    return (-1.0, 1 - 2 * least) if (gaps == -1).all() else None


def _contributions(name: str, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What each row adds to the score, up to a factor that all rows share."""
    if name == "pearson":
        x, y = (table[:, at] - table[:, at].mean() for at in (1, 2))
        scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
        product: npt.NDArray[np.float64] = x * y / scale if scale else x * 0.0
        return product
    total: npt.NDArray[np.float64] = table[:, 0] / table[:, 1].sum()
    return total


def _has_score(name: str, table: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """The rows that count: those of some weight."""
    weights = table[:, 0 if name == "pearson" else 1]
    counted: npt.NDArray[np.bool_] = weights > 0
    return counted


def _resampled(
    tables: Sequence[npt.NDArray[np.float64]], resamples: int, seed: int
) -> list[npt.NDArray[np.float64]]:
    """Sums over rows drawn with replacement, the same in all tables; (resamples, columns)."""
    rng, number = np.random.default_rng(seed), len(tables[0])
    found: list[list[npt.NDArray[np.float64]]] = [[] for _ in tables]
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        counts = rng.multinomial(number, np.full(number, 1 / number), size=size)
        for at, table in enumerate(tables):
            found[at].append(counts @ table)
    return [np.concatenate(parts) for parts in found]


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    edge = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(values), [edge, 1 - edge])
    return float(low), float(high)


def _sign_flips(gaps: npt.NDArray[np.float64], resamples: int, seed: int) -> float:
    """p of the observed sum of paired differences when each could as well have the other sign."""
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    rng, observed = np.random.default_rng(seed), abs(gaps.sum())
    # equal sums count as extreme, whatever the order of additions
    edge, extreme = observed * (1 - 1e-9), 0
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        signs = rng.integers(0, 2, size=(size, len(gaps)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((abs(signs @ gaps) >= edge).sum())
    return (extreme + 1) / (resamples + 1)
