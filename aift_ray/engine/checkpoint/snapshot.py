"""What a checkpoint holds of a run: copies in host memory, or tensors as they are now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel

from aift_ray.engine.checkpoint import MOMENTS, WEIGHTS, split_moments
from aift_ray.engine.checkpoint.tensor_files import GatheredTensors, ShardedTensors
from aift_ray.engine.model_writer import named_weights
from aift_ray.engine.run_state import RunState
from aift_ray.engine.worker_run import Run
from aift_ray.parallel.dtensor_utils import HostCopy


@dataclass(frozen=True)
class Snapshot:
    """A run as it was at a step.

    Attributes:
        rest: state of optimizer and scaler without the moments, in host memory.
        parts: writes the moments, and the weights where `model` does not hold them.
        model: the weights that a checkpoint holds, in host memory.
    """

    state: RunState
    rest: dict[str, Any]
    parts: GatheredTensors | ShardedTensors
    model: dict[str, torch.Tensor] | None = None


def snapshot(run: Run) -> Snapshot:
    """Copies of whole tensors; every worker must call this, worker 0's has them."""
    copy = HostCopy(run.parallel_model.contributes)
    held = copy(run.parallel_model.optimizer_state())
    held["state"] = run.parallel_model.gather(held["state"])
    rest, moments = split_moments(held)
    weights = whole_weights(run, copy)
    parts = GatheredTensors({MOMENTS: moments})
    return Snapshot(replace(run.state), _rest(run, rest), parts, weights)


def streamed_snapshot(run: Run, sharded: bool) -> Snapshot:
    """A run for which `can_stream`, whose tensors are on no worker as a whole.

    Args:
        sharded: each worker writes its shards, or copies of them with `training.async_save`;
            else tensors are gathered one by one, as they are when they are written.
    """
    rest, moments = split_moments(run.parallel_model.optimizer_state())
    sets = {WEIGHTS: named_weights(run.module.model), MOMENTS: moments}
    writes = run.group.model_parallel_size == 1 or run.group.dp_rank == 0
    copy = run.config.training.async_save
    parts = ShardedTensors(sets, copy, writes) if sharded else GatheredTensors(sets)
    return Snapshot(replace(run.state), HostCopy(keep=True)(_rest(run, rest)), parts)


def whole_weights(run: Run, copy: HostCopy | None = None) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds, in host memory of worker 0; every worker calls this."""
    copy = copy or HostCopy(run.parallel_model.contributes)
    return run.parallel_model.gather(copy(_saved_weights(run.module.model)))


def _rest(run: Run, optimizer: dict[str, Any]) -> dict[str, Any]:
    """All that is no weight: completions too, which other weights made for the next step."""
    completions = run.rollouts.saved(run.state.step) if run.rollouts else {}
    return {"optimizer": optimizer, "scaler": run.scaler.state_dict(), **completions}


def _saved_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds: all, or those of the adapters."""
    state = model.state_dict(keep_vars=True)
    if not isinstance(model, PeftModel):
        return state
    return {name: value for name, value in state.items() if value.requires_grad}
