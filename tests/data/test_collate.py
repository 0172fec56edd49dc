"""Micro-batches: how many tokens they take, and what is known of them before they are sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.collate import collate
from aift_ray.engine.step_batches import without_targets

CASES = [
    pytest.param({}, id="concat"),
    pytest.param({"padded": True}, id="padded"),
    pytest.param({"capacity": 128}, id="fill"),
    pytest.param({"together": 2}, id="compared"),
]


def plan(seed: int, **values: Any) -> BatchPlan:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(3.5, 0.9, 150)).clip(4, 400).astype(np.int32)
    targets = (lengths * rng.random(150)).astype(np.int32)
    return BatchPlan(lengths, targets, np.arange(150), 3, 24, seed, **values)


def size(of: BatchPlan, rows: list[int]) -> int:
    lengths = of.lengths[rows]
    return int(len(rows) * lengths.max() if of.padded else lengths.sum()) if rows else 0


@pytest.mark.parametrize("values", CASES)
@pytest.mark.parametrize("tokens", [8, 200, 1000, 10**6])
@pytest.mark.parametrize("world", [1, 3])
def test_the_same_rows_in_micro_batches_of_so_many_tokens(
    values: dict[str, Any], tokens: int, world: int
) -> None:
    filled = plan(tokens + world, tokens=tokens, **values)
    fixed = replace(filled, tokens=None)
    assert filled.steps_per_epoch == fixed.steps_per_epoch
    longest = size(filled, filled.longest_micro_batch())
    for step in range(2 * filled.steps_per_epoch):
        shares = [filled.share(step, rank, world) for rank in range(world)]
        others = [fixed.share(step, rank, world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1, "workers take as many micro-steps"
        parts = [part for share in shares for part in share]
        rows = sorted(row for part in parts for row in part)
        assert rows == sorted(row for share in others for part in share for row in part)
        unit = max(size(filled, unit) for unit in filled.global_units(step))
        for part in parts:
            assert size(filled, part) <= max(tokens, unit)
            assert size(filled, part) <= longest
            assert int(filled.targets[part].sum()) <= filled.most_targets()
            assert len(part) % filled.together == 0


class Rows:
    """Rows of uneven length, the last half of each supervised."""

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        length = 3 + 2 * index
        flags = np.arange(length) >= length // 2
        return np.arange(length, dtype=np.int32), flags.astype(np.uint8)


@pytest.mark.parametrize("padded", [False, True])
def test_the_longest_document_is_known_before_the_copy(padded: bool) -> None:
    # a tensor on meta can't be read: what was asked of it there would fail
    sent = collate(Rows(), [2, 0, 1], padded).to(torch.device("meta"))
    assert sent.max_seqlen == 7
    assert without_targets(sent).max_seqlen == 7


def test_few_micro_steps_where_many_tokens_are_allowed() -> None:
    one = plan(0, tokens=10**6)
    assert len(one.share(0, 0, 1)) == 1
    assert len(replace(one, tokens=None).share(0, 0, 1)) == 8
    steps = range(one.steps_per_epoch)
    mean = one.lengths.sum() / sum(len(one.share(step, 0, 1)) for step in steps)
    assert one.tokens_per_micro_step(1) == pytest.approx(mean)
