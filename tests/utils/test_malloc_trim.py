"""Freed memory goes back to the system."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from aift_ray.utils import malloc_trim


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps and gives back")
def test_holes_between_pieces_that_live_on_are_given_back() -> None:
    process = psutil.Process()
    held = [torch.ones(2**14) for _ in range(2000)]
    before = process.memory_info().rss
    # every other piece is a hole now, of 64 KiB
    pieces = held[::2]
    del held
    malloc_trim.trim()
    assert before - process.memory_info().rss > 40 * 2**20
    assert all(piece.sum() == 2**14 for piece in pieces)
