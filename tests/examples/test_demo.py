"""The demo takes the workers that a machine has room for."""

from __future__ import annotations

import os

import pytest
import torch

from aift_ray.commandline import parse
from aift_ray.config import RunConfig
from examples import demo
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers"), [(0, 2, 2), (0, 1, 1), (1, 8, 1), (2, 8, 2), (8, 64, 2)]
)
def test_it_takes_two_workers_where_there_is_room(
    gpus: int, cpus: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    asked: list[list[str]] = []

    class Done:
        returncode = 3

    def run(command: list[str], check: bool) -> Done:
        asked.append(command)
        return Done()

    monkeypatch.setattr(demo.subprocess, "run", run)
    with pytest.raises(SystemExit):
        demo.main()
    flags = asked[0][3:]
    assert flags[1] == str(ROOT / "examples" / "demo.yaml")
    config = parse(flags, RunConfig, "train", "").config
    assert config.worker_range(gpus) == (workers, workers)
