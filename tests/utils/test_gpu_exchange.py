"""The sum over a machine's GPUs, on processes that compute on its CPU, joined by gloo."""

from __future__ import annotations

import time

from aift_ray.utils.gpu_exchange import exchange


def test_processes_that_reach_each_other_say_nothing() -> None:
    assert exchange(2, 60.0, "gloo") == ""


def test_one_that_hangs_is_ended_in_time() -> None:
    started = time.monotonic()
    # torch alone takes longer to import
    assert exchange(2, 0.3, "gloo") == "no answer within 0 s"
    assert time.monotonic() - started < 10


def test_why_one_fails_is_told() -> None:
    # no such interface
    assert "nowhere" in exchange(2, 60.0, "gloo", GLOO_SOCKET_IFNAME="nowhere")
