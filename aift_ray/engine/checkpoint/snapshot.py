"""Checkpoints written while training goes on: it waits for the copy to host memory alone.

Where the weights are shared out, each worker copies and writes its share. Workers that do not see
the folder of worker 0 can't: then it gathers all, or, where no copy is wanted
(`training.async_save false`), tensor after tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor

from aift_ray.engine import checkpoint
from aift_ray.engine.build import Run
from aift_ray.engine.checkpoint import split_moments
from aift_ray.engine.checkpoint.gathered import (
    GatheredTensors,
    Tensors,
    can_stream,
    named_weights,
    write,
)
from aift_ray.engine.checkpoint.mirror import CheckpointMirror
from aift_ray.engine.checkpoint.sharded import ShardedTensors, all_see, await_others
from aift_ray.engine.metrics import tell
from aift_ray.engine.model_writer import write_model
from aift_ray.errors import TrainingError
from aift_ray.parallel.dtensor_utils import is_partitioned, is_shared_out, whole

# seconds that the end of a failed run waits for a checkpoint that others still write
_PATIENCE = 120.0


@dataclass(frozen=True)
class Snapshot:
    """A run as it was at a step, in host memory, its tensors whole whatever the strategy.

    Attributes:
        tensors: optimizer and scaler state.
        model: the weights that a checkpoint holds.
        seconds: that it took.
        shares: what this worker writes, in place of weights and moments.
    """

    state: checkpoint.State
    tensors: dict[str, Any]
    model: dict[str, Any] | None
    seconds: float
    shares: ShardedTensors | None = None


def snapshot(run: Run) -> Snapshot:
    """The run as it is now; every worker must call this, worker 0's has the tensors."""
    began = time.perf_counter()
    copy, gather = _copying(run)
    held = copy(run.parallel_model.optimizer_state())
    held["state"] = gather(held["state"])
    model = gather(copy(_kept(run.module.model)))
    tensors = {"optimizer": held, "scaler": run.scaler.state_dict(), **_rollout(run)}
    return Snapshot(replace(run.state), tensors, model, time.perf_counter() - began)


def _rollout(run: Run) -> dict[str, Any]:
    """The completions that the next step trains too, which other weights have generated."""
    return run.rollouts.saved(run.state.step) if run.rollouts else {}


def sharded_snapshot(run: Run) -> Snapshot:
    """The run as it is now, of which each worker has its share alone, and nothing is sent.

    Without `training.async_save` the shares are no copies.
    """
    began, copy = time.perf_counter(), run.config.training.async_save
    tensors = _optimizer_tensors(run)
    rest, moments = split_moments(tensors)
    sets: dict[str, Tensors] = {"model": named_weights(run.module.model), "moments": moments}
    shares = ShardedTensors(
        sets, copy, run.group.model_parallel_size == 1 or run.group.dp_rank == 0
    )
    held = _HostCopy(keep=True)(rest)
    return Snapshot(replace(run.state), held, None, time.perf_counter() - began, shares)


def _optimizer_tensors(run: Run) -> dict[str, Any]:
    """Optimizer and scaler state, of which this worker may hold a share."""
    state = run.parallel_model.optimizer_state()
    return {"optimizer": state, "scaler": run.scaler.state_dict()}


def writes_shards(run: Run) -> bool:
    """Whether each worker writes its share of a checkpoint; every worker must call this."""
    return can_stream(run.module.model) and all_see(run.job.checkpoints)


def files(run: Run) -> dict[str, Path]:
    """Where the sets of a snapshot of shares go."""
    folder = checkpoint.partial_folder(run.job.checkpoints, run.state.step)
    return {"model": folder / checkpoint.WEIGHTS, "moments": folder / checkpoint.MOMENTS}


def streams(run: Run, model: bool = True) -> GatheredTensors | None:
    """The tensors of a run, to be written without a copy; None where a copy is taken.

    Args:
        model: the weights alone, not the optimizer's tensors.
    """
    if not can_stream(run.module.model):
        return None
    sets: dict[str, Tensors] = {"model": named_weights(run.module.model)}
    if not model:
        sets["moments"] = split_moments({"optimizer": run.parallel_model.optimizer_state()})[1]
    return GatheredTensors(sets)


def final_weights(run: Run) -> dict[str, torch.Tensor] | None:
    """What `snapshot` says of the model alone; None where each worker has it whole anyway."""
    if not is_shared_out(run.module) and run.group.model_parallel_size == 1:
        return None
    copy, gather = _copying(run)
    weights: dict[str, torch.Tensor] = gather(copy(_kept(run.module.model)))
    return weights


def _copying(run: Run) -> tuple[_HostCopy, Callable[[dict[str, Any]], dict[str, Any]]]:
    """How tensors get to host memory, and from there to worker 0."""
    return _HostCopy(run.parallel_model.contributes), run.parallel_model.gather


class CheckpointWriter:
    """Writes the checkpoints of a run one after the other, and copies them to its store.

    Attributes:
        seconds: that training has waited for it.
        not_copied: what could not be copied to the store, and why.
    """

    def __init__(self, run: Run, store: CheckpointMirror | None) -> None:
        self.seconds = 0.0
        self.not_copied: dict[str, str] = {}
        self._run, self._store = run, store
        self._writer = ThreadPoolExecutor(1, "checkpoint-writer")
        self._copier = ThreadPoolExecutor(1, "checkpoint-copier")
        self._writing: Future[None] | None = None
        self._given_up: list[str] = []
        checkpoint.clean(run.job.checkpoints)

    def begin(self) -> None:
        """Make the folder into which all workers write their shares."""
        checkpoint.begin(self._run.job.checkpoints, self._run.state.step)

    def save(self, taken: Snapshot, now: bool = False) -> None:
        """Save the run as it was; `now`: wait until it is on the disk.

        Raises:
            TrainingError: this checkpoint or the one before could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(
            self._write, taken.state, taken.tensors, taken.model, taken.shares
        )
        self.seconds += taken.seconds
        if now:
            self.wait()

    def give_up(self, why: str) -> None:
        """Wait no longer for the shares of others."""
        self._given_up.append(why)

    def save_streamed(self, parts: GatheredTensors) -> None:
        """Save the run as it is, without a copy of it; training waits for the disk.

        Raises:
            TrainingError: it could not be written.
        """
        began, run = time.perf_counter(), self._run
        tensors = _optimizer_tensors(run)
        with parts.ending():
            self._write(replace(run.state), tensors, None, parts)
        self.seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            TrainingError: it could not be written.
        """
        began = time.perf_counter()
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        finally:
            self.seconds += time.perf_counter() - began

    def copy_results(self) -> None:
        """Copy what lies beside the checkpoints to the store, after all that is on its way."""
        if self._store:
            self._copier.submit(self._copy_results, self._store).result()

    def close(self) -> None:
        """Wait for everything that is on its way; for the shares of others, not for ever."""
        if self._writing:
            wait([self._writing], _PATIENCE)
        self.give_up("the run has ended")
        self._writer.shutdown()
        self._copier.shutdown()

    def _write(
        self,
        state: checkpoint.State,
        tensors: dict[str, Any],
        model: dict[str, torch.Tensor] | None,
        parts: GatheredTensors | ShardedTensors | None = None,
    ) -> None:
        run, training = self._run, self._run.config.training
        streamed = partial(parts.write, "model") if parts else None

        def save_model(folder: str) -> None:
            stop_ids = run.job.stop_ids
            base = run.job.location
            write_model(
                folder, run.written, run.tokenizer, stop_ids, None, model, streamed, base=base
            )

        def save_moments(path: Path, moments: dict[str, torch.Tensor]) -> None:
            if parts:
                parts.write("moments", path)
            else:
                write(path, moments)
            if isinstance(parts, ShardedTensors):
                await_others(path.parent, self._given_up)

        try:
            place = run.job.checkpoints
            begun = isinstance(parts, ShardedTensors)
            folder = checkpoint.save(place, state, tensors, save_model, save_moments, begun)
        except OSError as error:
            text = f"the checkpoint of step {state.step} could not be written: {error}"
            raise TrainingError(text) from error
        if run.job.events:
            tell(run.job.output, "save", {"step": state.step, "folder": str(folder)})
        best = state.best_step if training.load_best else None
        checkpoint.prune(run.job.checkpoints, training.keep_checkpoints, best)
        if self._store:
            self._copier.submit(self._copy, self._store, folder)

    def _copy(self, store: CheckpointMirror, folder: Path) -> None:
        kept = checkpoint.steps(folder.parent)
        self._copied(folder.name, lambda: store.put_checkpoint(folder, kept))
        self._copy_results(store)

    def _copy_results(self, store: CheckpointMirror) -> None:
        output = self._run.job.output
        self._copied("results", lambda: store.put_results(output))

    def _copied(self, name: str, copy: Callable[[], None]) -> None:
        try:
            copy()
        except FileNotFoundError:
            # a newer checkpoint has taken its place meanwhile
            return
        except OSError as error:
            self.not_copied[name] = str(error)


class _HostCopy:
    """Copies tensors to host memory; what shared memory before shares it after.

    Those that are shared out over the workers are gathered one by one; a worker that does not
    `keep` them takes part and has None.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._seen: dict[Any, torch.Tensor | None] = {}

    def __call__(self, value: object) -> Any:
        if isinstance(value, dict):
            return {name: self(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self(part) for part in value]
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(value, DTensor) or is_partitioned(value):
            # the same on every worker, which an address in memory need not be
            key: Any = id(value)
        else:
            key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or key not in self._seen:
            full = whole(value)
            self._seen[key] = full.to("cpu", copy=True) if self._keep else None
        return self._seen[key]


def _kept(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds: all, or those of the adapters."""
    state = model.state_dict(keep_vars=True)
    if not isinstance(model, PeftModel):
        return state
    return {name: value for name, value in state.items() if value.requires_grad}
