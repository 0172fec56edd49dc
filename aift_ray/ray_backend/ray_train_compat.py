"""Private interfaces of Ray Train and Tune, read from ray 2.60.0."""

from __future__ import annotations

from typing import Any

import ray.train.torch
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import (
    FailureDecision,
    FailurePolicy,
)
from ray.tune.schedulers import ASHAScheduler

from aift_ray.ray_backend.ray_compat import has_dashboard

__all__ = [
    # missing: the public UserCallback does not hear of resizing
    "ControllerCallback",
    "WorkerGroupCallback",
    # missing: a way to say which failures are not tried again
    "DefaultFailurePolicy",
    "FailureDecision",
    "TorchTrainer",
    "compared_by",
    "rungs",
]

# what asks the dashboard whether the run still exists
_CLEANER = "PlacementGroupCleanerCallback"


class TorchTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """With a policy for failures, and without the actor that asks the dashboard about the run.

    Where there is no dashboard, that would take 12 seconds to give up at the end of each run.
    Missing: TorchTrainer takes neither a policy nor the callbacks to leave out.
    """

    def __init__(self, *args: object, policy: FailurePolicy, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._policy = policy

    def _initialize_and_run_controller(self, **how: object) -> Any:
        return super()._initialize_and_run_controller(**how | {"failure_policy": self._policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if has_dashboard():
            return list(callbacks)
        return [c for c in callbacks if type(c).__name__ != _CLEANER]


def compared_by(scheduler: object) -> tuple[str, str]:
    """The metric by which a scheduler of Tune compares, and "min" or "max".

    Missing: schedulers have no public attribute for either.
    """
    known: Any = scheduler
    return known._metric, known._mode


def rungs(scheduler: ASHAScheduler) -> list[Any]:
    """The brackets of ASHA, whose `cutoff` says what a trial must reach.

    Missing: a tolerance around the cutoff.
    """
    return list(scheduler._brackets)
