"""What is laid out over devices, or dealt out to stages, and what does not fit."""

from __future__ import annotations

from itertools import combinations, pairwise

from aift_ray.planning.partition import HOST, ModelPart, dealt_out, laid_out

PIECES = [ModelPart(name, size, 1.0) for name, size in zip("abcd", (3, 4, 4, 2), strict=True)]


def test_devices_are_filled_one_after_the_other() -> None:
    layout, left = laid_out(PIECES, {0: 8, 2: 6})
    assert layout == {"a": 0, "b": 0, "c": 2, "d": 2}
    assert left == []


def test_what_fits_nowhere_is_told_or_lies_in_the_host() -> None:
    layout, left = laid_out(PIECES, {0: 7})
    assert layout == {"a": 0, "b": 0}
    assert sum(piece.bytes for piece in left) == 6
    layout, left = laid_out(PIECES, {0: 7}, spill=True)
    assert layout == {"a": 0, "b": 0, "c": HOST, "d": HOST}
    assert left == []


def test_an_output_layer_lies_beside_the_embeddings_whose_weight_it_shares() -> None:
    tied = [*PIECES[:3], ModelPart("d", 0, 1.0, shares="a")]
    assert laid_out(tied, {0: 3, 1: 8})[0] == {"a": 0, "b": 1, "c": 1, "d": 0}


def test_the_slowest_stage_has_the_least_work_that_it_can() -> None:
    work = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    for stages in range(1, 6):
        for last in (0.0, 7.0):
            sizes = dealt_out(work, stages, last)
            assert sum(sizes) == len(work)
            assert len(sizes) == stages
            assert min(sizes) >= 1
            ways = combinations(range(1, len(work)), stages - 1)
            best = min(slowest(work, [0, *cuts, len(work)], last) for cuts in ways)
            cuts = [sum(sizes[:n]) for n in range(stages + 1)]
            assert slowest(work, cuts, last) == best


def slowest(work: list[float], cuts: list[int], last: float) -> float:
    sums = [sum(work[a:b]) for a, b in pairwise(cuts)]
    return max(*sums[:-1], sums[-1] + last) if len(sums) > 1 else sums[0] + last


def test_an_output_layer_of_much_work_leaves_its_stage_fewer_blocks() -> None:
    assert dealt_out([1.0] * 8, 2) == [4, 4]
    assert dealt_out([1.0] * 8, 2, last=4.0) == [6, 2]
