"""Whole runs in this process, and runs that die at a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine.worker import work
from aift_ray.engine.worker_run import Run
from aift_ray.parallel.group import Group
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.conftest import write_rows

ALONE = Group(0, 1, torch.device("cpu"))


class Killed(BaseException):
    """Stands for a process that dies right after a checkpoint."""


def run(config: Any, folder: Path, kill_at: int | None = None) -> Run:
    """A whole run in this process, or one that dies at a checkpoint."""

    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == kill_at:
            raise Killed

    prepared = prepare(config, folder, 1, False, None)
    if not folder.exists():
        run_dir.start(prepared.job.config, folder)
    return work(prepared.job, ALONE, report)


def run_on(config: Any, folder: Path) -> None:
    """Go on in one process from the checkpoint that `config` names."""
    prepared = prepare(config, folder, 1, False, Path(config.resume))
    run_dir.start(prepared.job.config, folder)
    work(prepared.job, ALONE)


def losses(folder: Path) -> list[tuple[int, float, float, float]]:
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    return [
        (line["step"], line["loss"], line["learning_rate"], line["grad_norm"])
        for line in lines
        if "loss" in line
    ]


def resumed_exactly(config: Any, folder: Path, at: int = 3) -> Run:
    """A run that dies at step `at` and goes on gives the losses and weights of one left alone.

    Returns:
        the one left alone, in the folder `whole`.
    """
    whole = run(config, folder / "whole")
    with pytest.raises(Killed):
        run(config, folder / "killed", kill_at=at)
    resumed = run(config, folder / "killed")
    assert resumed.resumed_from == at
    assert losses(folder / "killed") == losses(folder / "whole"), "to the bit, each step once"
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    return whole


def evaluated(folder: Path, rows: int = 3) -> dict[str, Any]:
    """Settings of a run that evaluates loss and exact match on rows written into `folder`."""
    return {
        "data__eval_files": [str(write_rows(folder / "eval.jsonl", rows, 100))],
        "training__eval_steps": 2,
        "training__exact_match_rows": 3,
        "training__exact_match_batch_size": 2,
        "training__exact_match_max_tokens": 5,
    }
