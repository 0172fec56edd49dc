"""Groups of workers that grow and shrink with the cluster."""

from __future__ import annotations

import time
from pathlib import Path

from aift_ray.engine.metrics import SAVE
from aift_ray.ray_backend.ray_train_compat import ControllerCallback, WorkerGroupCallback

# longer than a step and the writing of a checkpoint should take
PATIENCE = 120.0


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Has a running group save a checkpoint before it is replaced by one of another size."""

    def __init__(self, output: Path) -> None:
        self.wish = output / SAVE
        self.running = False

    def after_worker_group_training_start(self, worker_group: object) -> None:
        """Called by Ray when the workers have started."""
        self.running = True

    def before_worker_group_shutdown(self, worker_group: object) -> None:
        """Called by Ray when they are about to end."""
        self.running = False

    def before_controller_execute_failure_decision(self, failure_decision: object) -> None:
        """Called by Ray when a worker has died: the others can't save any more."""
        self.running = False

    def before_controller_execute_resize_decision(self, resize_decision: object) -> None:
        """Called by Ray before it starts a group, or replaces the running one."""
        if not self.running:
            return
        self.wish.touch()
        end = time.monotonic() + PATIENCE
        while self.wish.exists() and time.monotonic() < end:
            time.sleep(0.1)
        self.wish.unlink(missing_ok=True)
