"""Trackers get what metrics.jsonl has; a resumed run is the same run there; each is optional."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.config import RunConfig, TrainingConfig
from aift_ray.engine import trackers
from aift_ray.errors import ConfigError
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.helpers.whole_runs import run, run_on
from tests.runs.test_resume_check import last_of

Configure = Callable[..., RunConfig]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def twice(configure: Configure, folder: Path, tracker: str) -> tuple[dict[str, str], RunConfig]:
    """A run of two steps that is gone on with to four; what identified it, both times."""
    values = {"training__report_to": [tracker], "training__save_steps": 2}
    run(configure(**values, training__max_steps=2), folder)
    first = (folder / trackers.IDENTITIES).read_text("utf-8")
    config = configure(**values, training__max_steps=4, resume=str(last_of(folder)))
    run_on(config, folder)
    assert (folder / trackers.IDENTITIES).read_text("utf-8") == first
    assert run_dir.summary(folder)["not_reported"] == []
    found: dict[str, str] = json.loads(first)
    return found, config


def test_tensorboard_gets_every_line_with_settings_and_summary(
    configure: Configure, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    run(configure(data__validation_fraction=0.25), folder)
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = {line["step"]: line["loss"] for line in lines_of(folder) if "loss" in line}
    assert {e.step: e.value for e in board.Scalars("train/loss")} == pytest.approx(logged)
    tags = set(board.Tags()["tensors"])
    assert {"configuration/text_summary", "summary/text_summary"} <= tags
    assert "eval/loss" in board.Tags()["scalars"]


def test_metrics_of_comparisons_are_logged_once_where_they_were_measured(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = trackers.Trackers(["tensorboard"], tmp_path, 0, {})
    board.log({"step": 1, "loss": 0.7, "rewards/chosen": 1.0, "kl": None, "a/b": 3.0})
    board.log({"step": 1, "eval_rewards/chosen": 2.0, "jnli/accuracy": 0.5})
    board.log(
        {"step": 2, "loss": None, "reward": 0.5, "entropy": 2.0, "completions/mean_length": 4.0}
    )
    board.log(
        {"step": 2, "eval_reward": 0.25, "eval_rewards/short/mean": 0.25, "eval_accuracy": None}
    )
    board.close({})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {tag: [e.value for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert values.pop("train/loss") == pytest.approx([0.7])
    assert values == {
        "train/rewards/chosen": [1.0],
        "train/a/b": [3.0],
        "eval/rewards/chosen": [2.0],
        "eval/jnli/accuracy": [0.5],
        "train/reward": [0.5],
        "train/entropy": [2.0],
        "train/completions/mean_length": [4.0],
        "eval/reward": [0.25],
        "eval/rewards/short/mean": [0.25],
    }


def test_mlflow_has_one_run_with_all_steps(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow.tracking")
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"MLFLOW_ALLOW_FILE_STORE": "true"})
    folder = tmp_path / "run"
    found, config = twice(configure, folder, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (experiment,) = (e for e in client.search_experiments() if e.name == trackers.PROJECT)
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_id == found["mlflow"]
    assert kept.info.status == "FINISHED"
    assert kept.data.params["training.seed"] == str(config.training.seed)
    assert kept.data.tags["changed.training.max_steps"] == "4"
    assert kept.data.metrics["summary/steps"] == 4
    history = client.get_metric_history(kept.info.run_id, "train/loss")
    logged = {line["step"]: line["loss"] for line in lines_of(folder) if "loss" in line}
    assert {each.step: each.value for each in history} == pytest.approx(logged)


def test_trackio_has_one_run_with_all_steps(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    found, _ = twice(configure, tmp_path / "run", "trackio")
    assert sqlite.get_runs(trackers.PROJECT) == [found["trackio"]]
    logs = sqlite.get_logs(trackers.PROJECT, found["trackio"])
    assert sorted(e["step"] for e in logs if "train/loss" in e) == [1, 2, 3, 4]


def test_wandb_offline_has_one_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    found, _ = twice(configure, folder, "wandb")
    kept = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert kept
    assert all(name.endswith(found["wandb"]) for name in kept)
    (*_, file) = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    content = file.read_bytes()
    assert b"training.seed" in content
    assert b"train/loss" in content


def test_a_run_that_is_resumed_with_no_step_left_sends_its_summary(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for status, opened in (("interrupted", False), ("done", True)):
        board = trackers.Trackers(["tensorboard"], tmp_path, 4, {})
        board.close({"status": status})
        assert (tmp_path / "tensorboard").exists() is opened
        board.close({"status": status})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(found.Tensors("summary/text_summary")) == 1


class Broken:
    """A service that goes away."""

    identity = "x"

    def __init__(self, *arguments: Any) -> None:
        self.lines = 0

    def configure(self, settings: dict[str, Any]) -> None:
        assert settings["training.seed"] == 42

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines += 1
        if self.lines > 1:
            raise ConnectionError("the service is gone\nand more")


def test_a_tracker_that_fails_costs_its_own_record_alone(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._KINDS, "wandb", Broken)
    monkeypatch.setattr(trackers, "missing", lambda names: [])
    run(configure(training__report_to=["wandb", "tensorboard"]), tmp_path / "run")
    summary = run_dir.summary(tmp_path / "run")
    assert summary["status"] == "done"
    assert summary["not_reported"] == ["wandb: the service is gone"]
    assert (tmp_path / "run" / "tensorboard").is_dir()


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    config = configure(training__report_to=["wandb", "mlflow", "tensorboard"])
    with pytest.raises(ConfigError) as error:
        prepare(config, tmp_path / "run", 1, False, None)
    remedies = [problem.remedy for problem in error.value.problems]
    project = Path(__file__).parents[2] / "pyproject.toml"
    pins = project.read_text("utf-8")
    assert [r.removeprefix("pip install ") in pins for r in remedies] == [True, True]
    with pytest.raises(ConfigError, match="report_to"):
        TrainingConfig(report_to=["tensorbord"])
    assert TrainingConfig(report_to="none").report_to == []
    assert TrainingConfig().report_to == ["tensorboard"]
