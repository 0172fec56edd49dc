"""Sweeps on real Ray workers, started by the command as a user starts it."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import write_rows
from tests.launch.command import Cluster, Command, curve_of, flags, summary_of

pytestmark = pytest.mark.ray

NAMES = ("training.precision", "training.fp16")


def sweep(
    folder: Path, model: Path, rows: Path, cluster: Cluster, space: dict[str, Any], **values: Any
) -> tuple[list[str], dict[str, str]]:
    """The command line of a grid search, and its environment."""
    file, held_out = folder / "sweep.yaml", write_rows(folder / "eval.jsonl", 4, 100)
    file.write_text(yaml.safe_dump({"training": space, "tune": {"search": "grid"}}), "utf-8")
    argv = flags(model, rows, folder / "out", **{"num-workers": 1}, **values)
    # a flag would win over the space
    if "learning_rate" in space:
        at = argv.index("--training.learning_rate")
        del argv[at : at + 2]
    argv += ["--eval-file", str(held_out), "--config", str(file)]
    return argv, cluster.environment


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def training_workers(cluster: Cluster) -> list[int]:
    return [
        process.pid
        for process in psutil.Process(cluster.head.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


def test_a_sweep_tells_its_bad_trials_apart_and_its_best_runs_again_to_the_bit(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    # each value is allowed with the first of the others: only the trial shows the contradiction
    space = {"precision": {"grid": ["auto", "bf16"]}, "fp16": {"grid": [True, False]}}
    argv, environment = sweep(tmp_path, tiny_model, rows_file, cluster, space)
    status, output = Command([*argv, "--max-concurrent", "3"], environment, "tune").done()
    assert status == 0, output
    assert "Traceback" not in output
    folder = tmp_path / "out"
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["done", "done", "done", "bad setting"]
    assert "training.fp16" in rows[3]["why"]
    assert [tuple(row[name] for name in NAMES) for row in rows[:3]] == [
        *[("auto", "True"), ("auto", "False"), ("bf16", "True")]
    ]
    columns = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["eval_loss"] for row in columns][3] is None
    for row, column in zip(rows[:3], columns, strict=False):
        assert float(row["eval_loss"]) == column["eval_loss"]
        trial = folder / "trials" / row["trial"]
        assert summary_of(trial)["eval_loss"] == column["eval_loss"]
        assert (trial / "model" / "adapter_config.json").is_file()
        assert len(curve_of(trial)) == 6
    for name in ("parallel", "importance", "learning_curves", "by_time"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 10_000
    best = min(columns[:3], key=lambda row: row["eval_loss"])["trial"]
    assert f"trial {best}, eval_loss" in output
    again = ["--config", str(folder / "best.yaml"), "--output-dir", str(tmp_path / "again")]
    status, output = Command(again, environment).done()
    assert status == 0, output
    assert curve_of(tmp_path / "again") == curve_of(folder / "trials" / str(best))
    evaluated = [
        summary_of(p)["eval_loss"] for p in (tmp_path / "again", folder / f"trials/{best}")
    ]
    assert evaluated[0] == evaluated[1]


def test_a_sweep_outlives_a_crash_stops_losers_and_goes_on_after_ctrl_c(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    rates = {"learning_rate": {"grid": [1e-2, 1.1e-2, 1e-9, 9e-3]}}
    space = rates | {"max_steps": 400, "save_steps": 4, "eval_steps": 20}
    argv, environment = sweep(tmp_path, tiny_model, rows_file, cluster, space, ray__max_failures=0)
    folder, trials = tmp_path / "out", tmp_path / "out" / "trials"
    command = Command([*argv, "--max-concurrent", "1"], environment, "tune")
    command.at_step(trials / "0", 8)
    (worker,) = training_workers(cluster)
    os.kill(worker, signal.SIGKILL)
    command.at_step(trials / "3", 8)
    command.process.send_signal(signal.SIGINT)
    status, output = command.done()
    assert status == 130, output
    assert "--resume" in output
    assert training_workers(cluster) == []
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["crashed", "done", "stopped", "interrupted"]
    assert "worker" in rows[0]["why"]
    assert 20 <= int(rows[2]["steps"]) < 300, "it is stopped soon after its first evaluation"
    assert list((trials / "2" / "checkpoints").glob("step-*"))
    kept = [trials / number / "summary.json" for number in ("1", "2")]
    before = [path.stat().st_mtime_ns for path in kept]
    status, output = Command([*argv, "--resume", "--seed", "9"], environment, "tune").done()
    assert status == 2
    assert "training: the sweep in" in output
    status, output = Command([*argv, "--resume"], environment, "tune").done()
    assert status == 0, output
    assert [path.stat().st_mtime_ns for path in kept] == before, "what has ended is kept"
    for row in rows_of(folder):
        assert row["status"] in ("done", "stopped")
    for number in ("0", "3"):
        assert summary_of(trials / number)["resumed_from"] >= 4
        steps = [line[0] for line in curve_of(trials / number)]
        assert len(steps) == summary_of(trials / number)["steps"]
