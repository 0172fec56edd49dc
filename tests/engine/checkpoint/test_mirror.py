"""Checkpoints written while training goes on, and their copies in a folder or a bucket."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import checkpoint
from aift_ray.engine.checkpoint import newest
from aift_ray.engine.checkpoint.mirror import CheckpointMirror
from aift_ray.engine.checkpoint.writer import CheckpointWriter
from aift_ray.errors import ConfigError
from aift_ray.runs import run_dir
from aift_ray.utils import filesystems
from tests.helpers.runs import started, stepped
from tests.helpers.whole_runs import Killed, losses, run

Configure = Callable[..., Any]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed copies are tried again at once."""
    monkeypatch.setattr(filesystems, "PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_run_goes_on_from_its_copy_when_its_own_folder_is_lost(
    kind: str, configure: Configure, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path / "copies") if kind == "folder" else request.getfixturevalue("bucket")
    values = {"training__batch_size": 4, "training__save_steps": 2, "ray__storage_path": place}
    run(configure(**(values | {"ray__storage_path": None})), tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(configure(**values), folder, kill_at=4)
    shutil.rmtree(folder)
    config = configure(**values).model_copy(update={"resume": "latest"})
    found, notes = run_dir.resume_point(config, folder)
    assert found == folder / "checkpoints" / "step-4"
    assert notes[-1] == "resumed from checkpoints/step-4"
    resumed = run(config, folder)
    assert resumed.resumed_from == 4
    assert losses(folder)[-1] == losses(tmp_path / "whole")[-1]
    store = CheckpointMirror(place, "run")
    assert store.steps() == [4, 6]
    store.fetch_results(tmp_path / "back")
    for name in ("metrics.jsonl", "loss.png", "model/config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


def test_a_copy_that_was_cut_off_is_not_taken(configure: Configure, tmp_path: Path) -> None:
    place = tmp_path / "copies"
    run(configure(training__save_steps=1, ray__storage_path=str(place)), tmp_path / "run")
    (place / "run" / "checkpoints" / "step-3" / checkpoint.MANIFEST).unlink()
    (place / "run" / "checkpoints" / "step-2" / "model.safetensors").write_bytes(b"cut")
    found, notes = newest(tmp_path / "new", CheckpointMirror(str(place), "run"))
    assert found == tmp_path / "new" / "step-1"
    assert "step-2 is damaged (model.safetensors has 3 bytes" in notes[1]


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("failures", [2, 1000])
def test_a_copy_that_fails_is_tried_again_and_costs_nothing_else(
    failures: int, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = filesystems.fs.copy_files, [0]

    def unsteady(*given: Any) -> None:
        if failed[0] < failures:
            failed[0] += 1
            raise OSError("the network is down")
        real(*given)

    monkeypatch.setattr(filesystems.fs, "copy_files", unsteady)
    place = tmp_path / "copies"
    run(configure(training__save_steps=1, ray__storage_path=str(place)), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert [checkpoint.damage(folder / f"step-{n}") for n in (1, 2, 3)] == [None, None, None]
    told = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["not_copied"]
    if failures == 2:
        assert told == []
        assert CheckpointMirror(str(place), "run").steps() == [1, 2, 3]
    else:
        names = ("step-1", "results", "step-2", "step-3")
        assert told == [f"{name}: the network is down" for name in names]


def test_a_place_that_is_none_is_told_before_the_start(
    configure: Configure, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    config = configure(ray__storage_path=str(tmp_path / "file"))
    (problem,) = run_dir.check(config, tmp_path / "run")
    assert "can't be written" in problem.what
    with pytest.raises(ConfigError, match="Unrecognized filesystem"):
        run_dir.check(configure(ray__storage_path="nowhere://x"), tmp_path / "run")


def test_training_goes_on_while_a_checkpoint_is_written(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = started(configure(training__batch_size=4), tmp_path)
    saver, real = CheckpointWriter(moved, None), checkpoint._write_manifest
    go_on = tmp_path / "go on"

    def slow(folder: Path) -> None:
        while not go_on.exists():
            time.sleep(0.01)
        real(folder)

    monkeypatch.setattr(checkpoint, "_write_manifest", slow)
    stepped(moved, 2)
    before = {name: value.clone() for name, value in moved.module.model.state_dict().items()}
    moment = moved.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    saver.save(at_once=False)
    stepped(moved, 2)
    assert checkpoint.steps(moved.job.checkpoints) == []
    go_on.touch()
    saver.settle()
    saver.close()
    state, tensors = checkpoint.load(moved.job.checkpoints / "step-2")
    assert state.step == 2
    assert torch.equal(next(iter(tensors["optimizer"]["state"].values()))["exp_avg"], moment)
    from safetensors.torch import load_file

    saved = load_file(moved.job.checkpoints / "step-2" / "model.safetensors")
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_what_a_killed_run_left_half_written_is_removed(
    configure: Configure, tmp_path: Path
) -> None:
    left = tmp_path / "checkpoints" / ".step-7.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    CheckpointWriter(started(configure(), tmp_path), None).close()
    assert os.listdir(tmp_path / "checkpoints") == []
