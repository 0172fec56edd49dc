"""How all workers write a run's checkpoints together; worker 0 has the `Saver`."""

from __future__ import annotations

from collections.abc import Callable

from aift_ray.engine.build import Run
from aift_ray.engine.checkpoint.gathered import GatheredTensors
from aift_ray.engine.checkpoint.mirror import CheckpointMirror
from aift_ray.engine.checkpoint.sharded import ShardWriter
from aift_ray.engine.checkpoint.snapshot import (
    CheckpointWriter,
    files,
    sharded_snapshot,
    snapshot,
    streams,
    writes_shards,
)
from aift_ray.errors import TrainingError


class CheckpointCoordinator:
    """One worker's part in writing; every worker must call each method alike.

    Attributes:
        saver: of worker 0.
    """

    def __init__(self, run: Run, store: CheckpointMirror | None) -> None:
        self._run = run
        self.saver = CheckpointWriter(run, store) if run.group.is_main_process else None
        self._shares = ShardWriter() if writes_shards(run) else None

    def save(self, at_once: bool) -> None:
        """Save a checkpoint of the run as it is; `at_once`: it is on the disk afterwards.

        Raises:
            TrainingError: it, or the one before, could not be written.
        """
        # two copies would be in host memory, were the last one not written by now
        self.settle()
        parts = None if self._run.config.training.async_save else streams(self._run, model=False)
        if self._shares:
            self._save_shares(self._shares, at_once)
        elif parts:
            self.streamed(parts, lambda saver: saver.save_streamed(parts))
        else:
            taken = snapshot(self._run)
            self.together(lambda saver: saver.save(taken, at_once))

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            TrainingError: a worker could not write what it had of it.
        """
        problem = self._run.group.first(self._shares.wait()) if self._shares else None
        if problem and self.saver:
            self.saver.give_up(problem)
        self.together(CheckpointWriter.wait)

    def streamed(self, parts: GatheredTensors, act: Callable[[CheckpointWriter], None]) -> None:
        """What worker 0 writes of the tensors of all; the others give their shares."""
        if not self.saver:
            with parts.ending():
                pass
        self.together(act)

    def together(self, act: Callable[[CheckpointWriter], None]) -> None:
        """What worker 0 does for all; it fails on every worker, so that none waits for it."""
        problem = None
        if self.saver:
            try:
                act(self.saver)
            except (TrainingError, OSError) as error:
                problem = str(error)
        problem = self._run.group.agree(problem)
        if problem:
            raise TrainingError(problem)

    def close(self) -> None:
        """Wait for what is on its way: it is worth as much as any other checkpoint."""
        if self._shares:
            self._shares.close()
        if self.saver:
            self.saver.close()

    def _save_shares(self, writer: ShardWriter, at_once: bool) -> None:
        """Each worker copies and writes its share; worker 0 all else, and the name at last."""
        self.together(CheckpointWriter.begin)
        taken = sharded_snapshot(self._run)
        if not self.saver:
            assert taken.shares
            writer.start(taken.shares, files(self._run))
        self.together(lambda saver: saver.save(taken))
        if at_once:
            self.settle()
