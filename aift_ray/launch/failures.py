"""What becomes of a run when a worker fails: who is ended, what is tried again, what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, UserCallback

# a public way to say which failures are not tried again does not exist
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

from aift_ray.errors import AiftError

if TYPE_CHECKING:
    # with it comes all that a worker needs, and neither the command nor Ray's controller does
    from aift_ray.parallel.group import Group

# seconds in which workers that fail of the same reason all notice it
PATIENCE = 30.0


def returned(error: AiftError, group: Group) -> AiftError:
    """What a worker returns that all workers leave with; they end in their own time.

    Raises:
        AiftError: the others don't leave: they wait for this worker, and Ray must end them.
    """
    group.leave()
    if group.all_leave(PATIENCE):
        return error
    raise error


def own(failures: dict[int, Any]) -> AiftError | None:
    """The error of this package among those of workers; that of the lowest rank."""
    for _, failure in sorted(failures.items()):
        error = getattr(failure, "_base_exc", failure)
        if isinstance(error, AiftError):
            return error
    return None


class Policy(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray's, but what a second attempt would not mend is not tried again."""

    def __init__(self, config: FailureConfig) -> None:
        super().__init__(config)

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Whether the group of workers is started again."""
        if own(getattr(training_failed_error, "worker_failures", {})):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Causes(UserCallback):  # type: ignore[misc]
    """Writes down why a group of workers had to be restarted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray with the exceptions of workers by rank."""
        if own(worker_exceptions):
            return
        causes = [f"worker {rank}: {short(e)}" for rank, e in sorted(worker_exceptions.items())]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(causes, ensure_ascii=False) + "\n")


def short(error: BaseException) -> str:
    """The kind of an error, and the last line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
