"""A group of workers that shrinks and grows with a real cluster of two nodes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from aift_ray.commandline import parse
from aift_ray.config import RunConfig
from tests.conftest import KEITAI
from tests.helpers.command import Cluster, Command, flags, lose, summary_of
from tests.helpers.runs import started, stepped

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SETTINGS: dict[str, Any] = {
    "num-workers": "1:2",
    "ray__resize_seconds": 2,
    "training__max_steps": 100_000,
    "training__lr_scheduler": "constant",
    "training__save_steps": 50,
    "training__batch_size": 16,
}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Lines of steps, as far as they are written."""
    log = folder / "metrics.jsonl"
    texts = log.read_text("utf-8").splitlines() if log.is_file() else []
    lines = [json.loads(text) for text in texts if text.endswith("}")]
    return [line for line in lines if "loss" in line]


def wait_for_workers(running: Command, folder: Path, number: int, steps: int) -> int:
    """Wait until some steps were taken by `number` workers in a row; the last one of them."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        assert running.alive(), running.output()
        lines = lines_of(folder)
        if [line["world_size"] for line in lines[-steps:]] == [number] * steps:
            return int(lines[-1]["step"])
        time.sleep(0.1)
    raise AssertionError(f"{number} workers did not train: {running.output()}")


def test_the_steps_stay_the_same_while_a_node_leaves_and_another_comes(
    cluster: Cluster, tmp_path: Path
) -> None:
    check_elastic(cluster, tmp_path, {})


def check_elastic(cluster: Cluster, tmp_path: Path, how: dict[str, Any]) -> None:
    """Take a node away and add one under a run with further settings `how`."""
    folder = tmp_path / "run"
    node = cluster.add_node()
    argv = flags(Path("hina-4m"), KEITAI / "train.jsonl", folder, **SETTINGS, **how)
    running = Command(argv, cluster.environment)
    wait_for_workers(running, folder, 2, 55)
    lose(node)
    alone = wait_for_workers(running, folder, 1, 3)
    cluster.add_node()
    again = wait_for_workers(running, folder, 2, 3)
    running.process.terminate()
    assert running.done()[0] == 75, running.output()
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once"
    sizes = [line["world_size"] for line in lines]
    assert sizes == sorted(sizes[:alone], reverse=True) + sorted(sizes[alone:])
    summary = summary_of(folder)
    assert summary["restarts"] >= 1
    assert summary["resumed_from"] >= alone, "it was saved before it grew"
    changes = [i for i in range(1, len(lines)) if sizes[i] != sizes[i - 1]]
    gaps = [lines[i]["time"] - lines[i - 1]["time"] for i in changes]
    print("seconds between the steps of the groups:", *(f"{gap:.0f}" for gap in gaps))
    config = parse(argv, RunConfig, "train", "").config
    config.ray.num_workers = 1
    config.training.batch_size *= 2
    config.parallel.strategy, config.parallel.backend = "ddp", "auto"
    undisturbed = stepped(started(config, tmp_path / "one"), again)
    for line, expected in zip(lines, undisturbed, strict=False):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4), line["step"]
        assert line["tokens"] == expected["tokens"], "the same rows"
