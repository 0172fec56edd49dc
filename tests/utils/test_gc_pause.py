"""Garbage collection of a run leaves out what was there before, and gives it back afterwards."""

from __future__ import annotations

import gc
import weakref

from aift_ray.utils import gc_pause


class _Cycle:
    def __init__(self) -> None:
        self.own = self


def test_objects_of_before_are_left_out_and_collected_afterwards() -> None:
    before = weakref.ref(_Cycle())
    assert before() is not None
    with gc_pause.of_new_objects():
        new = weakref.ref(_Cycle())
        gc.collect()
        assert new() is None
        assert before() is not None
    gc.collect()
    assert before() is None
