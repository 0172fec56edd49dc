"""Who of a sweep is stopped early: Ray Tune's ASHA and median stopping, made gentle.

A trial that loses is asked to end as Ctrl-C asks a run: it writes a checkpoint and leaves by
itself, so that no worker is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from aift_ray.config import TuneConfig
from aift_ray.engine.metrics import STOP
from aift_ray.ray_backend.ray_train_compat import compared_by, rungs
from aift_ray.sweep.trial import DONE, STOPPED, Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as RayTrial

# in the folder of a trial that was asked to stop
ASKED = ".stopped"
_REDUCTION = 3


@dataclass(frozen=True)
class _Known:
    """What a scheduler needs of a trial that ran before."""

    trial_id: str


class _Graceful:
    """A scheduler whose losers end by themselves."""

    def on_trial_result(self, controller: object, trial: RayTrial, result: dict[str, Any]) -> str:
        """Ask a trial that is to be stopped to stop."""
        folder = trial.config["job"].output
        if (folder / ASKED).exists() or "problem" in result:
            return str(TrialScheduler.CONTINUE)
        if self.decide(controller, trial, result) == TrialScheduler.STOP:
            (folder / ASKED).touch()
            (folder / STOP).touch()
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, controller: object, trial: object, result: dict[str, Any]) -> None:
        """A trial that reported nothing to compare is left out."""
        if compared_by(self)[0] in result:
            super().on_trial_complete(controller, trial, result)  # type: ignore[misc]

    def remember(self, trial: Trial, metric: str) -> None:
        """Take account of a trial of an earlier start of the sweep."""
        known = _Known(f"before-{trial.number}")
        self.on_trial_add(None, known)  # type: ignore[attr-defined]
        for line in trial.evaluations(metric):
            result = {"step": line["step"], metric: line[metric]}
            if self.decide(None, known, result) == TrialScheduler.STOP:
                return

    def decide(self, controller: object, trial: RayTrial | _Known, result: dict[str, Any]) -> str:
        """Whether a trial with this evaluation stops or continues."""
        metric, mode = compared_by(self)
        if not math.isfinite(result.get(metric, 0.0)):
            worst = math.inf if mode == "min" else -math.inf
            result = result | {metric: worst}
        return str(super().on_trial_result(controller, trial, result))  # type: ignore[misc]


class _Asha(_Graceful, ASHAScheduler):  # type: ignore[misc]
    """Stops also who is worse than the model was before it was trained, without competition too."""

    def __init__(self, tolerance: float, grace: int, **given: object) -> None:
        super().__init__(grace_period=grace, **given)
        self._grace, self._untrained = grace, dict[str, float]()
        for bracket in rungs(self):
            bracket.cutoff = partial(_lowered, bracket.cutoff, tolerance)

    def decide(self, controller: object, trial: RayTrial | _Known, result: dict[str, Any]) -> str:
        """As ASHA does, and by the untrained model."""
        metric, mode = compared_by(self)
        decided, score = super().decide(controller, trial, result), result.get(metric)
        if score is None:
            return decided
        if result["step"] == 0:
            self._untrained[trial.trial_id] = score
        sign = 1.0 if mode == "max" else -1.0
        before = self._untrained.get(trial.trial_id, math.inf * -sign)
        worse = sign * score < sign * before
        return str(TrialScheduler.STOP) if worse and result["step"] >= self._grace else decided


def _lowered(cutoff: Callable[[Any], Any], tolerance: float, recorded: object) -> Any:
    """What a trial must reach at a rung, by how those before it did there; None: nothing yet."""
    reached = cutoff(recorded)
    return None if reached is None else reached - tolerance * abs(reached)


class _Median(_Graceful, MedianStoppingRule):  # type: ignore[misc]
    pass


def scheduler(config: TuneConfig, grace: int, steps: int, kept: list[Trial]) -> Any:
    """The scheduler that the configuration asks for.

    Args:
        grace: steps that every trial may take.
        steps: of the longest trial.
        kept: trials of an earlier start of the sweep.
    """
    if config.scheduler == "none":
        return FIFOScheduler()
    about: dict[str, Any] = {
        "time_attr": "step",
        "metric": config.metric,
        "mode": config.better,
    }
    grace = min(grace, steps)
    made: _Graceful
    if config.scheduler == "asha":
        about |= {"reduction_factor": _REDUCTION, "stop_last_trials": False, "max_t": steps}
        made = _Asha(config.tolerance, grace, **about)
    else:
        # it would pause trials for others to catch up; those would lose their workers
        made = _Median(**about, grace_period=grace, min_time_slice=math.inf)
    for trial in kept:
        if trial.status in (DONE, STOPPED):
            made.remember(trial, config.metric)
    return made
