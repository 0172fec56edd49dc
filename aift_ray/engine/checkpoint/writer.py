"""Checkpoints written by all workers together, while training goes on where a copy is taken.

Where the weights are sharded, each worker copies and writes its shards. Workers that do not see
the folder of worker 0 can't: then it gathers all, or, where no copy is wanted
(`training.async_save false`), tensor after tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from aift_ray.engine import checkpoint
from aift_ray.engine.checkpoint import MOMENTS, WEIGHTS
from aift_ray.engine.checkpoint.mirror import CheckpointMirror
from aift_ray.engine.checkpoint.snapshot import Snapshot, snapshot, streamed_snapshot
from aift_ray.engine.checkpoint.tensor_files import GatheredTensors, ShardedTensors, await_others
from aift_ray.engine.metrics import tell
from aift_ray.engine.model_writer import can_stream, write_model
from aift_ray.engine.worker_run import Run
from aift_ray.errors import TrainingError

# seconds that the end of a failed run waits for a checkpoint that others still write
_PATIENCE = 120.0


class CheckpointWriter:
    """One worker's part in the checkpoints of a run; every worker must call each method alike.

    Attributes:
        seconds: that training has waited for it.
        not_copied: what could not be copied to the store, and why.
    """

    def __init__(self, run: Run, store: CheckpointMirror | None) -> None:
        self.seconds = 0.0
        self.not_copied: dict[str, str] = {}
        self._run, self._store = run, store
        self._is_main = run.group.is_main_process
        self._streams = can_stream(run.module.model)
        self._sharded = self._streams and run.group.all_see(run.job.checkpoints)
        self._thread = ThreadPoolExecutor(1, "checkpoint-writer")
        self._copier = ThreadPoolExecutor(1, "checkpoint-copier")
        self._writing: Future[None] | None = None
        self._given_up: list[str] = []
        if self._is_main:
            checkpoint.clean(run.job.checkpoints)

    def save(self, at_once: bool) -> None:
        """Save a checkpoint of the run as it is; `at_once`: it is on the disk afterwards.

        Raises:
            TrainingError: it, or the one before, could not be written.
        """
        # two copies would be in host memory, were the last one not written by now
        self.settle()
        run = self._run
        began = time.perf_counter()
        if self._streams and not self._sharded and not run.config.training.async_save:
            # without a copy of it: training waits for the disk
            taken = streamed_snapshot(run, sharded=False)
            assert isinstance(taken.parts, GatheredTensors)
            self.together(partial(self._write, taken), taken.parts)
            self.seconds += time.perf_counter() - began
            return
        if self._sharded:
            self.together(lambda: checkpoint.begin(run.job.checkpoints, run.state.step))
        taken = streamed_snapshot(run, sharded=True) if self._sharded else snapshot(run)
        self.seconds += time.perf_counter() - began
        if self._is_main:
            self._writing = self._thread.submit(self._write, taken)
        elif isinstance(taken.parts, ShardedTensors):
            folder = checkpoint.partial_folder(run.job.checkpoints, run.state.step)
            self._writing = self._thread.submit(taken.parts.write_all, folder)
        if at_once:
            self.settle()

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            TrainingError: a worker could not write its part of it.
        """
        began, writing = time.perf_counter(), self._writing
        if self._sharded:
            # worker 0 would wait for the shards of a worker that can't write them
            failed = writing.exception() if writing and not self._is_main else None
            problem = self._run.group.first(str(failed) if failed else None)
            self._given_up += [problem] if problem else []
        self._writing = None
        self.together(lambda: writing and writing.result())
        self.seconds += time.perf_counter() - began

    def together(self, act: Callable[[], object], parts: GatheredTensors | None = None) -> None:
        """What worker 0 does for all; it fails on every worker, so that none waits for it.

        Args:
            parts: tensors of all that it takes meanwhile, to which the others give their shards.
        """
        problem = None
        try:
            if self._is_main:
                act()
        except (TrainingError, OSError) as error:
            problem = str(error)
        finally:
            if parts:
                parts.finish()
        problem = self._run.group.agree(problem)
        if problem:
            raise TrainingError(problem)

    def copy_results(self) -> None:
        """Copy what is beside the checkpoints to the store, after all that is on its way."""
        if self._store:
            self._copy("results", partial(self._store.put_results, self._run.job.output)).result()

    def close(self) -> None:
        """Wait for what is on its way: it is worth as much as any other checkpoint."""
        if self._writing:
            wait([self._writing], _PATIENCE)
        self._given_up.append("the run has ended")
        self._thread.shutdown()
        self._copier.shutdown()

    def _write(self, taken: Snapshot) -> None:
        run, job, parts, step = self._run, self._run.job, taken.parts, taken.state.step
        streamed = partial(parts.write, WEIGHTS) if taken.model is None else None
        given = (run.written, job.tokenizer_files, job.stop_ids, None, taken.model, streamed)
        try:
            with checkpoint.complete(job.checkpoints, step, begun=self._sharded) as folder:
                write_model(str(folder), *given, base=job.location)
                parts.write(MOMENTS, folder / MOMENTS)
                if isinstance(parts, ShardedTensors):
                    await_others(folder, self._given_up)
                checkpoint.write_state(folder, taken.state, taken.rest)
        except OSError as error:
            text = f"the checkpoint of step {step} could not be written: {error}"
            raise TrainingError(text) from error
        folder = job.checkpoints / f"step-{step}"
        if job.events:
            tell(job.output, "save", {"step": step, "folder": str(folder)})
        training = run.config.training
        best = taken.state.best_step if training.load_best else None
        checkpoint.prune(job.checkpoints, training.keep_checkpoints, best)
        if self._store:
            self._copy(folder.name, partial(self._store.put_checkpoint, folder))
            self._copy("results", partial(self._store.put_results, job.output))

    def _copy(self, name: str, put: Callable[[], None]) -> Future[None]:
        def copied() -> None:
            try:
                put()
            except FileNotFoundError:
                # a newer checkpoint has taken its place meanwhile
                return
            except OSError as error:
                self.not_copied[name] = str(error)

        return self._copier.submit(copied)
