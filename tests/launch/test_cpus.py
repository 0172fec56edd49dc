"""The CPUs of a worker, where they are not given.

`get_num_cpus`, Ray's count of a machine's CPUs, is a stand-in: the machines have 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aift_ray.launch import fitting, workers

Configure = Callable[..., Any]


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda **_: 16)


def cpus(configure: Configure, workers_: int, **values: Any) -> float:
    config = configure(**values)
    fitting.settle_cpus(config, workers_)
    asked = workers.asked(config.ray, 1)["CPU"]
    assert asked == config.ray.cpus_per_worker
    return float(asked)


def test_with_offload_the_workers_share_the_machine(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    offload = {"parallel__offload": True, "parallel__strategy": "fsdp"}
    assert cpus(configure, 2, **offload) == 8
    assert cpus(configure, 3, **offload) == 5
    assert cpus(configure, 32, **offload) == 1
    assert cpus(configure, 2, **offload, ray__cpus_per_worker=3.0) == 3
    assert cpus(configure, 2) == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cpus(configure, 2, **offload) == 1, "the machines are others"
