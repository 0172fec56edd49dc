"""The trials of a sweep on Ray Tune: each launches a TorchTrainer and reports its evaluations."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from aift_ray.config import TuneConfig
from aift_ray.engine.metrics import STOP
from aift_ray.errors import AiftError, TrainingError, UserError, WorkersLost
from aift_ray.ray_backend import ray_trainer as workers
from aift_ray.ray_backend.ray_tokenize import encode_of
from aift_ray.ray_backend.tune_scheduler import ASKED, scheduler
from aift_ray.runs import run_dir
from aift_ray.runs.execution import execution
from aift_ray.runs.prepare import prepare
from aift_ray.sweep.search import Search
from aift_ray.sweep.space import trial_config
from aift_ray.sweep.trial import (
    BAD_SETTING,
    CRASHED,
    DONE,
    INTERRUPTED,
    STOPPED,
    TRIALS,
    Trial,
    evaluations,
)

# Tune's own files and checks, which the trials' folders make needless; and the user's paths are
# relative to where the command was given
_SWITCHES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
# the CPUs are the workers'; Tune takes no request for nothing at all
_NEXT_TO_NOTHING = {"memory": 1.0}


@dataclass
class Sweep:
    """What all trials share.

    Attributes:
        fixed: settings that the sweep has decided, laid over those of each trial.
        gpu: whether a worker has one.
        devices: GPUs in reach.
        concurrent: trials at once.
        steps: of the longest trial.
        grace: steps that every trial may take.
    """

    folder: Path
    config: TuneConfig
    search: Search
    fixed: dict[str, Any]
    gpu: bool
    devices: int
    concurrent: int
    steps: int
    grace: int


class Trials(Searcher):  # type: ignore[misc]
    """Starts the trials that Tune asks for, and keeps account of them.

    Args:
        kept: the trials of a sweep that is gone on with.
        told: called when a trial has started or ended.
    """

    def __init__(self, sweep: Sweep, kept: list[Trial], told: Callable[[Trial], None]) -> None:
        super().__init__()
        self.sweep, self.told = sweep, told
        self.trials = {trial.number: trial for trial in kept}
        self.stopping = threading.Event()
        self._live: dict[str, Trial] = {}
        for trial in kept:
            if trial.settled:
                sweep.search.ask(trial.number, trial.choices)
                self._tell(trial)
        settled = {trial.number for trial in kept if trial.settled}
        self._to_come = [n for n in range(sweep.search.total) if n not in settled]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, where Tune would write it down: the trials' folders hold all that is needed."""
        return {}

    def set_search_properties(self, *given: object, **spec: object) -> bool:
        """Nothing is taken from Tune."""
        return True

    def save_to_dir(self, *given: object, **named: object) -> None:
        """As above."""

    def suggest(self, trial_id: str) -> Any:
        """What Tune passes to the next trial; None: not yet."""
        if len(self._live) >= self.sweep.concurrent:
            return None
        while self._to_come and not self.stopping.is_set():
            number = self._to_come.pop(0)
            trial, settings = self._started(number)
            if settings is not None:
                self._live[trial_id] = trial
                if self.stopping.is_set():
                    (trial.folder / STOP).touch()
                return settings
        return Searcher.FINISHED

    def stop(self) -> None:
        """Ask every trial to end with a checkpoint, and start none."""
        self.stopping.set()
        for trial in list(self._live.values()):
            (trial.folder / STOP).touch()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Write down how a trial ended."""
        trial, result = self._live.pop(trial_id), result or {}
        status = run_dir.summary(trial.folder).get("status")
        asked = (trial.folder / ASKED).exists()
        if "problem" in result:
            trial.status = CRASHED if result["crashed"] else BAD_SETTING
            trial.why = result["problem"]
        elif error:
            trial.status, trial.why = CRASHED, "the trial's process was lost"
        else:
            trial.status = DONE if status == "done" else STOPPED if asked else INTERRUPTED
        self._tell(trial)
        self._ended(trial)

    def _started(self, number: int) -> tuple[Trial, dict[str, Any] | None]:
        """A trial whose run could start, and what it is told; or one that was refused."""
        sweep, before = self.sweep, self.trials.get(number)
        choices = sweep.search.ask(number, before.choices if before else None)
        trial = Trial(number, sweep.folder / TRIALS / str(number), choices)
        self.trials[number] = trial
        trial.save()
        try:
            config = trial_config(sweep.search.space, choices, sweep.fixed)
            workers = config.worker_range(sweep.devices)
            going_on = config.model_copy(update={"resume": "latest"})
            resume, _ = run_dir.resume_point(going_on, trial.folder)
            encode = encode_of(config.data)
            prepared = prepare(config, trial.folder, workers[1], sweep.gpu, resume, encode=encode)
        except UserError as error:
            trial.status = BAD_SETTING
            trial.why = "; ".join(f"{problem.where}: {problem.what}" for problem in error.problems)
            self._tell(trial)
            self._ended(trial)
            return trial, None
        run_dir.start(prepared.job.config, trial.folder)
        (trial.folder / ASKED).unlink(missing_ok=True)
        self.told(trial)
        return trial, {
            "job": prepared.job,
            "workers": workers,
            "gpu": sweep.gpu,
            "metric": sweep.config.metric,
        }

    def _tell(self, trial: Trial) -> None:
        score = trial.score(self.sweep.config.metric)
        failed = trial.status not in (DONE, STOPPED)
        lines = trial.evaluations(self.sweep.config.metric)
        stopped_at = lines[-1]["step"] if trial.status == STOPPED and lines else None
        self.sweep.search.tell(trial.number, None if failed else score, stopped_at)

    def _ended(self, trial: Trial) -> None:
        trial.why = " ".join(trial.why.split())
        trial.save()
        self.told(trial)


def _run(settings: dict[str, Any]) -> None:
    """A trial, in a process of its own: a TorchTrainer, and a report for each evaluation."""
    job = dataclasses.replace(settings["job"], started=time.time())
    metric, told = settings["metric"], -1

    def follow() -> None:
        nonlocal told
        for line in evaluations(job.output, metric):
            if line["step"] > told:
                told = line["step"]
                ray.tune.report({"step": told, metric: line[metric]})

    try:
        with execution(job):
            workers.train(job, settings["workers"], settings["gpu"], follow)
        follow()
    except AiftError as error:
        ray.tune.report({"problem": str(error), "crashed": isinstance(error, WorkersLost)})


def fit(sweep: Sweep, trials: Trials, state: Path) -> None:
    """Run the trials to come; returns when all have ended.

    Args:
        state: a folder for Tune's own files.

    Raises:
        TrainingError: Ray Tune itself failed.
    """
    os.environ.update(_SWITCHES)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    kept = [trial for trial in trials.trials.values() if trial.settled]
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(_run, _NEXT_TO_NOTHING),
        tune_config=ray.tune.TuneConfig(
            search_alg=trials,
            scheduler=scheduler(sweep.config, sweep.grace, sweep.steps, kept),
            num_samples=-1,
            # a process that has run a trial has imported all that the next one needs
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(name="tune", storage_path=str(state), verbose=0),
    )
    box: dict[str, BaseException] = {}

    def tune() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            box["error"] = error

    # in a thread of its own: the main thread keeps the signals
    thread = threading.Thread(target=tune, name="ray-tune", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if "error" in box:
        raise TrainingError(f"the sweep failed: {box['error']}") from box["error"]
