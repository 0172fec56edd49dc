"""A launched run on two workers that is killed and resumed is one run in each tracker, offline."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aift_ray.engine import checkpoint, trackers
from tests.helpers.command import Command, flags, summary_of

for needed in ("wandb", "mlflow", "trackio"):
    pytest.importorskip(needed, reason="in an environment of its own: make test-trackers")

pytestmark = [pytest.mark.slow, pytest.mark.ray]
# workers outlive their command by a moment, in which they take some steps more
STEPS, KILLED_AFTER = 300, 20
BLOCK, HEADER = 32768, 7


def offline(folder: Path, cache: Path) -> dict[str, str]:
    """The environment of a run whose trackers write to this machine alone."""
    away = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID")
    kept = {name: value for name, value in os.environ.items() if name not in away}
    return kept | {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
        "XDG_CACHE_HOME": str(cache),
    }


def test_a_killed_and_resumed_run_is_one_run_in_each_tracker(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    line = json.dumps({"instruction": "日本の首都は？", "output": "東京です。"}, ensure_ascii=False)
    rows.write_text(f"{line}\n" * 8, "utf-8")
    argv = flags(tiny_model, rows, folder, training__max_steps=STEPS, training__save_steps=20)
    for name in ("tensorboard", "wandb", "mlflow", "trackio"):
        argv += ["--training.report_to", name]
    argv += ["--resume", "latest"]
    environment = offline(tmp_path, tmp_path / "cache")
    killed = Command(argv, environment)
    killed.at_checkpoint(folder, KILLED_AFTER)
    killed.process.kill()
    killed.process.wait()
    before = json.loads((folder / trackers.IDENTITIES).read_text("utf-8"))
    status, output = Command(argv, environment).done()
    assert status == 0, output
    assert "nothing more goes to" not in output
    summary = summary_of(folder)
    assert KILLED_AFTER <= summary["resumed_from"] < STEPS
    assert summary["not_reported"] == []
    assert json.loads((folder / trackers.IDENTITIES).read_text("utf-8")) == before
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged = {
        "tensorboard": of_tensorboard(folder),
        "mlflow": of_mlflow(folder, before["mlflow"]),
        "trackio": of_trackio(tmp_path / "trackio", before["trackio"]),
        "wandb": of_wandb(folder, before["wandb"]),
    }
    for tracker, steps in logged.items():
        assert sorted(set(steps)) == list(range(1, STEPS + 1)), tracker
        # what was lost with the kill is taken again; all before the checkpoint is there once
        twice = [step for step, count in Counter(steps).items() if count > 1]
        assert all(step > summary["resumed_from"] for step in twice), tracker
    assert len(logged["tensorboard"]) == STEPS
    assert checkpoint.steps(folder / "checkpoints")[-1] == STEPS


def of_tensorboard(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"configuration/text_summary", "summary/text_summary"} <= set(board.Tags()["tensors"])
    return [event.step for event in board.Scalars("train/loss")]


def of_mlflow(folder: Path, identity: str) -> list[int]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (experiment,) = (e for e in client.search_experiments() if e.name == trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (identity, "FINISHED")
    assert run.data.params["training.max_steps"] == str(STEPS)
    assert run.data.metrics["summary/steps"] == STEPS
    return [each.step for each in client.get_metric_history(identity, "train/loss")]


def of_trackio(folder: Path, identity: str) -> list[int]:
    import sqlite3

    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as store:
        found = store.execute("select run_name, step, metrics from metrics").fetchall()
        ((config,),) = store.execute("select config from configs").fetchall()
    assert {name for name, _, _ in found} == {identity}
    assert json.loads(config)["training.max_steps"] == STEPS
    values = [(step, json.loads(text)) for _, step, text in found]
    assert [each["summary/steps"] for _, each in values if "summary/steps" in each] == [STEPS]
    return [step for step, each in values if "train/loss" in each]


def of_wandb(folder: Path, identity: str) -> list[int]:
    steps, settings, summaries = [], set(), {}
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.run_id == identity
            elif kind == "config":
                settings |= {each.key or each.nested_key[0] for each in record.config.update}
            elif kind == "summary":
                summaries |= {each.key: each.value_json for each in record.summary.update}
            elif kind == "history":
                names = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
                steps += [int(names["step"])] if "train/loss" in names else []
    assert "training.max_steps" in settings
    assert summaries["status"] == '"done"'
    return steps


def records(file: Path) -> list[Any]:
    """The records of a file of W&B: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, found, whole = file.read_bytes(), HEADER, [], b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        # 1: whole, 4: the last part of several
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found
