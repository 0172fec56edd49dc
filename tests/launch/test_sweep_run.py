"""Sweeps on real Ray workers, started by the command as a user starts it."""

from __future__ import annotations

import csv
import os
import signal
from math import log
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import write_rows
from tests.helpers.command import Cluster, Command, curve_of, flags, summary_of
from tests.helpers.preference_rows import pairs, write

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# the first two are good, the third learns nothing; the second contradicts bf16, which shows only
# where both are drawn: each is allowed beside the first of the other
SPACE = {
    "training": {
        "precision": {"grid": ["auto", "bf16"]},
        "max_steps": 600,
        "save_steps": 50,
        "eval_steps": 100,
    },
    "grid": [
        {"training": {"learning_rate": 1e-2}},
        {"training": {"learning_rate": 1.1e-2, "fp16": False}},
        {"training": {"learning_rate": 1e-9}},
    ],
    # a rate of 1e-9 leaves this small model within the default tolerance of those that learn
    "tune": {"search": "grid", "num_samples": 5, "max_concurrent": 1, "tolerance": 0.0},
}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def training_workers(cluster: Cluster) -> list[int]:
    return [
        process.pid
        for process in psutil.Process(cluster.head.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


def test_a_sweep_outlives_crashes_stops_losers_goes_on_after_ctrl_c_and_its_best_runs_again(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder, trials = tmp_path / "out", tmp_path / "out" / "trials"
    file, held_out = tmp_path / "sweep.yaml", write_rows(tmp_path / "eval.jsonl", 4, 100)
    file.write_text(yaml.safe_dump(SPACE, sort_keys=False), "utf-8")
    argv = flags(tiny_model, rows_file, folder, **{"num-workers": 1}, ray__max_failures=0)
    # a flag would win over the space
    at = argv.index("--training.learning_rate")
    argv = [*argv[:at], *argv[at + 2 :], "--eval-file", str(held_out), "--config", str(file)]

    command = Command(argv, cluster.environment, "tune")
    command.at_step(trials / "0", 60)
    (worker,) = training_workers(cluster)
    os.kill(worker, signal.SIGKILL)
    command.at_step(trials / "3", 8)
    command.process.send_signal(signal.SIGINT)
    status, output = command.done()
    assert status == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    assert training_workers(cluster) == []
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["crashed", "done", "stopped", "interrupted"]
    assert "worker" in rows[0]["why"]
    assert 100 <= int(rows[2]["steps"]) < 600, "it is stopped soon after its first evaluation"
    assert list((trials / "2" / "checkpoints").glob("step-*"))

    kept = [trials / number / "summary.json" for number in ("1", "2")]
    before = [path.stat().st_mtime_ns for path in kept]
    other = [*argv, "--resume", "--seed", "9"]
    status, output = Command(other, cluster.environment, "tune").done()
    assert status == 2
    assert "training: the sweep in" in output
    status, output = Command([*argv, "--resume"], cluster.environment, "tune").done()
    assert status == 0, output
    assert [path.stat().st_mtime_ns for path in kept] == before, "what has ended is kept"
    rows = rows_of(folder)
    assert {rows[0]["status"], rows[3]["status"]} <= {"done", "stopped"}
    assert rows[4]["status"] == "bad setting"
    assert "training.fp16" in rows[4]["why"]
    for number, step in (("0", 50), ("3", 8)):
        assert summary_of(trials / number)["resumed_from"] >= step
    assert len(list((folder / "plots").glob("*.png"))) == 4
    columns = pq.read_table(folder / "trials.parquet").to_pylist()
    for row, column in zip(rows[:4], columns, strict=False):
        assert float(row["eval_loss"]) == column["eval_loss"]
        assert float(row["training.learning_rate"]) == column["training.learning_rate"]

    ended = [column for column in columns if column["status"] == "done"]
    best = trials / str(min(ended, key=lambda column: column["eval_loss"])["trial"])
    again = ["--config", str(folder / "best.yaml"), "--output-dir", str(tmp_path / "again")]
    status, output = Command(again, cluster.environment).done()
    assert status == 0, output
    assert curve_of(tmp_path / "again") == curve_of(best), "to the bit"
    evaluated = [summary_of(place)["eval_loss"] for place in (tmp_path / "again", best)]
    assert evaluated[0] == evaluated[1]


def test_a_sweep_over_objectives_and_beta_computes_the_references_once(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    rows, held_out = (
        write(tmp_path / "rows.jsonl", pairs(8)),
        write(tmp_path / "eval.jsonl", pairs(4, 50)),
    )
    file = tmp_path / "sweep.yaml"
    space = {
        "objective": {"grid": ["dpo", "ipo"]},
        "preference": {"beta": {"grid": [0.1, 0.5]}},
        "tune": {"search": "grid", "metric": "eval_accuracy", "max_concurrent": 1},
    }
    file.write_text(yaml.safe_dump(space), "utf-8")
    argv = flags(
        tiny_model,
        rows,
        tmp_path / "out",
        **{"num-workers": 1},
        data__cache_dir=tmp_path / "cache",
        training__max_steps=2,
        training__eval_steps=2,
    )
    argv += ["--eval-file", str(held_out), "--config", str(file)]
    status, output = Command(argv, cluster.environment, "tune").done()
    assert status == 0, output
    trials = rows_of(tmp_path / "out")
    assert [trial["status"] for trial in trials] == ["done"] * 4
    begins = {("dpo", 0.1): log(2), ("dpo", 0.5): log(2), ("ipo", 0.1): 25.0, ("ipo", 0.5): 1.0}
    assert begins == {
        (trial["objective"], float(trial["preference.beta"])): pytest.approx(
            curve_of(tmp_path / "out" / "trials" / trial["trial"])[0][0], abs=1e-5
        )
        for trial in trials
    }
    assert all(0 <= float(trial["eval_accuracy"]) <= 1 for trial in trials)
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text("utf-8"))
    most = max(float(trial["eval_accuracy"]) for trial in trials)
    assert (best["objective"], best["preference"]["beta"]) in [
        (trial["objective"], float(trial["preference.beta"]))
        for trial in trials
        if float(trial["eval_accuracy"]) == most
    ]
    assert len(list((tmp_path / "cache").rglob("reference-*-train.npy"))) == 1
