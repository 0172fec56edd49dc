"""How trials are accounted for, who is stopped, and what a trial gets of the cluster; no Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aift_ray.config import SweepConfig, TuneConfig
from aift_ray.errors import ConfigError, TrainingError, WorkersLost
from aift_ray.launch import sweep_run as sweeps
from aift_ray.ray_backend import ray_trainer
from aift_ray.ray_backend.tune_runner import Sweep, Trials
from aift_ray.ray_backend.tune_scheduler import ASKED, scheduler
from aift_ray.sweep import trial as sweep_trial
from aift_ray.sweep.plots import draw, importance
from aift_ray.sweep.results import table_rows, write
from aift_ray.sweep.search import search
from aift_ray.sweep.space import separate, trial_config
from aift_ray.sweep.trial import Trial

DATA = {"train_files": ["a.jsonl"], "eval_files": ["b.jsonl"]}
RATE = {"loguniform": [1e-4, 1e-2]}


def ended(folder: Path, number: int, status: str, losses: list[float]) -> Trial:
    """A trial as it lies on disk, evaluated every ten steps."""
    trial = Trial(number, folder / "trials" / str(number), {"rate": number}, status)
    trial.save()
    lines = [{"step": 10 * at, "eval_loss": loss, "time": at} for at, loss in enumerate(losses)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (trial.folder / "metrics.jsonl").write_text(text, "utf-8")
    summary = {"status": "done", "eval_loss": losses[-1] if losses else None}
    (trial.folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    rate = 1e-3 * (number + 1)
    (trial.folder / "config.yaml").write_text(f"training: {{learning_rate: {rate}}}\n", "utf-8")
    return trial


def test_the_best_is_the_best_of_those_that_ran_to_their_end(tmp_path: Path) -> None:
    trials = [
        ended(tmp_path, 0, "done", [3.0, 2.0, 1.0]),
        ended(tmp_path, 1, "stopped", [3.0, 0.5]),
        ended(tmp_path, 2, "crashed", []),
        ended(tmp_path, 3, "done", [3.0, float("nan")]),
        ended(tmp_path, 4, "done", [3.0, 0.1, 1.5]),
    ]
    assert sweep_trial.load(tmp_path) == trials
    assert [trial.settled for trial in trials] == [True, True, False, True, True]
    assert sweep_trial.best(trials, "eval_loss", "min") is trials[0]
    assert sweep_trial.best(trials, "eval_loss", "max") is trials[4]
    assert sweep_trial.best(trials, "exact_match", "max") is None
    names = ["training.learning_rate"]
    rows = table_rows(trials, names, TuneConfig())
    assert [row["eval_loss"] for row in rows] == [1.0, 0.5, None, None, 1.5]
    assert [row[names[0]] for row in rows] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
    write(tmp_path, trials, names, TuneConfig())
    draw(tmp_path, trials, names, TuneConfig())
    best = (tmp_path / "best.yaml").read_text("utf-8")
    assert best.startswith("# trial 0: eval_loss 1\n")
    assert best.endswith((trials[0].folder / "config.yaml").read_text("utf-8"))
    assert len(list((tmp_path / "plots").iterdir())) == 4


def test_a_setting_that_decides_explains_the_ranks_and_one_that_does_not_little() -> None:
    scores = np.arange(30.0)
    assert importance([float(score) for score in scores], scores) > 0.85
    assert importance(["left" if score < 15 else "right" for score in scores], scores) > 0.7
    assert importance([["a", "b"][at % 2] for at in range(30)], scores) < 0.01
    assert importance([1.0, 1.0, 2.0], np.array([0.0, 0.0, 0.0])) <= 1


@dataclass(eq=False)
class Tuned:
    """A trial as Tune's schedulers see it."""

    trial_id: str
    config: dict[str, Any]


def tuned(folder: Path, number: int) -> Tuned:
    place = folder / str(number)
    place.mkdir()
    return Tuned(str(number), {"job": SimpleNamespace(output=place)})


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_loser_is_asked_to_stop_and_is_never_killed(kind: Any, tmp_path: Path) -> None:
    kept = [ended(tmp_path, n, "done", [3.0, 1.0 + n / 10, 0.5]) for n in range(4)]
    rule = scheduler(TuneConfig(scheduler=kind), 10, 100, kept)
    good, bad, lost = (tuned(tmp_path, number) for number in range(3))
    for trial, losses in ((good, [3.0, 0.4, 0.1]), (bad, [3.0, 2.9]), (lost, [3.0, float("nan")])):
        rule.on_trial_add(None, trial)
        for at, loss in enumerate(losses):
            result = {"step": 10 * at, "eval_loss": loss}
            assert rule.on_trial_result(None, trial, result) == "CONTINUE"
        rule.on_trial_complete(None, trial, {"problem": "it reported nothing at last"})
    for trial, asked in ((good, False), (bad, True), (lost, True)):
        for name in (ASKED, ".stop"):
            assert (trial.config["job"].output / name).exists() == asked


def asked_to_stop(folder: Path, *trials: list[float], **settings: Any) -> list[int | None]:
    """The step at which each trial is asked to stop by ASHA, the metrics every ten steps given."""
    rule, steps = scheduler(TuneConfig(**settings), 10, 100, []), list[int | None]()
    for number, values in enumerate(trials):
        trial, stopped = tuned(folder, number), None
        rule.on_trial_add(None, trial)
        for at, value in enumerate(values):
            rule.on_trial_result(None, trial, {"step": 10 * at, rule.metric: value})
            if stopped is None and (trial.config["job"].output / ASKED).exists():
                stopped = 10 * at
        steps.append(stopped)
    return steps


@pytest.mark.parametrize(("tolerance", "stopped"), [(0.0, [None, 10, 10]), (0.2, [None, None, 10])])
def test_who_is_near_the_cutoff_goes_on(
    tolerance: float, stopped: list[int | None], tmp_path: Path
) -> None:
    losses = ([3.0, 1.0], [3.0, 1.15], [3.0, 1.3])
    assert asked_to_stop(tmp_path, *losses, tolerance=tolerance) == stopped


def test_who_is_worse_than_the_untrained_model_is_stopped_without_competition(
    tmp_path: Path,
) -> None:
    assert asked_to_stop(tmp_path, [3.0, 2.9, 3.1]) == [20]


def test_before_anybody_has_an_exact_match_nobody_is_stopped(tmp_path: Path) -> None:
    matches = ([0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.49], [0.0, 0.0, 0.0, 0.1])
    assert asked_to_stop(tmp_path, *matches, metric="exact_match") == [None, None, 30]


def test_no_scheduler_stops_nobody() -> None:
    assert type(scheduler(TuneConfig(scheduler="none"), 10, 100, [])).__name__ == "FIFOScheduler"


def account(folder: Path, config: SweepConfig, space: Any) -> tuple[Trials, list[str]]:
    told: list[str] = []
    sweep = Sweep(folder, config.tune, search(space, config.tune), {}, False, 0, 1, 10, 1)
    return Trials(sweep, [], lambda trial: told.append(trial.status)), told


def test_a_bad_setting_and_a_crash_are_told_apart_and_kept(
    tmp_path: Path, tiny_model: Path, rows_file: Path
) -> None:
    values = {"model": str(tiny_model), "data": {**DATA, "train_files": [str(rows_file)]}}
    values["data"]["eval_files"] = [str(rows_file)]
    training = {"fp16": {"grid": [True, False]}, "precision": {"grid": ["auto", "bf16"]}}
    config, space = separate({**values, "training": training, "tune": {"search": "grid"}}, [])
    trials, told = account(tmp_path, config, space)
    ends: list[dict[str, Any]] = [
        {"error": True},
        {"result": {"problem": "a worker\nwas lost", "crashed": True}},
        {"result": {"problem": "the loss is not finite", "crashed": False}},
    ]
    for at, end in enumerate(ends):
        settings = trials.suggest(str(at))
        assert settings["job"].output == tmp_path / "trials" / str(at)
        assert trials.suggest("another") is None, "one at once"
        trials.on_trial_complete(str(at), **end)
    assert trials.suggest("3") == "FINISHED"
    found = sweep_trial.load(tmp_path)
    assert [t.status for t in found] == ["crashed", "crashed", "bad setting", "bad setting"]
    assert found[1].why == "a worker was lost"
    assert "training.fp16" in found[3].why
    assert told == ["running", "crashed", "running", "crashed", "running", *["bad setting"] * 2]


def test_lost_workers_are_a_crash_and_what_they_say_of_themselves_is_not(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(output=tmp_path)
    assert isinstance(ray_trainer._explained(RuntimeError("gone"), job), WorkersLost)
    assert not isinstance(TrainingError("the loss is not finite"), WorkersLost)


@pytest.mark.parametrize(
    ("devices", "at_once", "expected"), [(0, None, 1), (8, None, 1), (8, 2, 4), (2, 4, 1)]
)
def test_a_trial_gets_its_share_of_the_devices(
    devices: int, at_once: int | None, expected: int
) -> None:
    values = {"data": DATA, "training": {"learning_rate": RATE}, "ray": {"storage_path": "s3://b"}}
    config, space = separate({**values, "tune": {"max_concurrent": at_once}}, [])
    fixed = sweeps._decided(config, space, Path("/x/mine"), devices)
    assert fixed["ray"] == {"num_workers": expected, "storage_path": "s3://b/mine"}
    assert all(Path(path).is_absolute() for path in fixed["data"]["train_files"])
    one = trial_config(space, {}, fixed)
    resources = {"CPU": 16.0, "GPU": float(devices)}
    number = sweeps._concurrent(config, [one], devices, 10, resources)
    assert number == {None: devices or 10, 2: 2, 4: 2}[at_once]


def test_a_trial_that_never_fits_is_refused() -> None:
    config, space = separate({"data": DATA, "ray": {"num_workers": {"choice": [1, 3]}}}, [])
    configs = [trial_config(space, corner, {}) for corner in space.corners()]
    with pytest.raises(ConfigError, match="3 workers need 3 CPU"):
        sweeps._concurrent(config, configs, 0, 10, {"CPU": 2.0})
