"""What becomes of a run when a worker fails: who is ended, what is tried again, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, UserCallback

from aift_ray.engine.run_errors import is_worker_loss, short
from aift_ray.errors import AiftError
from aift_ray.ray_backend.ray_compat import worker_error
from aift_ray.ray_backend.ray_train_compat import DefaultFailurePolicy, FailureDecision
from aift_ray.runs.restart_causes import add_failure

if TYPE_CHECKING:
    # with it comes all that a worker needs, and neither the command nor Ray's controller does
    from aift_ray.parallel.group import Group

# seconds in which workers that fail of the same reason all notice it
PATIENCE = 10.0


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
        error = worker_error(failure)
        if isinstance(error, AiftError):
            return error
    return None


def of_code(failures: dict[int, Any]) -> bool:
    """Whether workers failed by an error of their code, and none was lost."""
    errors = [worker_error(failure) for failure in failures.values()]
    lost = [type(error).__module__.partition(".")[0] == "ray" for error in errors]
    return not any(lost) and not all(is_worker_loss(error) for error in errors)


def each(failures: dict[int, Any]) -> list[str]:
    """A line a worker, by rank."""
    return [
        f"worker {rank}: {short(worker_error(error))}" for rank, error in sorted(failures.items())
    ]


class Policy(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray's, but what a second attempt would not mend is not tried again."""

    def __init__(self, config: FailureConfig) -> None:
        super().__init__(config)

    def make_decision(self, training_failed_error: object) -> FailureDecision:
        """Whether the group of workers is started again."""
        failures = getattr(training_failed_error, "worker_failures", {})
        if own(failures) or of_code(failures):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Causes(UserCallback):  # type: ignore[misc]
    """Writes down why a group of workers had to be restarted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray with the exceptions of workers by rank."""
        if own(worker_exceptions) or of_code(worker_exceptions):
            return
        add_failure(self.path, each(worker_exceptions))
