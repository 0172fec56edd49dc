"""What a checkpoint holds of a run: copies in host memory, or tensors as they are now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor

from aift_ray.engine import checkpoint
from aift_ray.engine.checkpoint import MOMENTS, WEIGHTS, split_moments
from aift_ray.engine.checkpoint.tensor_files import GatheredTensors, ShardedTensors, Tensors
from aift_ray.engine.worker_run import Run
from aift_ray.models.decoder import causal_model
from aift_ray.models.transformers_compat import conversions, ignored_on_save
from aift_ray.parallel.dtensor_utils import is_partitioned, is_shared_out, whole


@dataclass(frozen=True)
class Snapshot:
    """A run as it was at a step.

    Attributes:
        tensors: optimizer and scaler state, in host memory.
        model: the weights that a checkpoint holds, in host memory.
        parts: writes weights and moments, where `model` and `tensors` do not hold them.
    """

    state: checkpoint.State
    tensors: dict[str, Any]
    model: dict[str, Any] | None
    parts: GatheredTensors | ShardedTensors | None = None


def snapshot(run: Run) -> Snapshot:
    """Copies of whole tensors; every worker must call this, worker 0's has them."""
    copy = _HostCopy(run.parallel_model.contributes)
    held = copy(run.parallel_model.optimizer_state())
    held["state"] = run.parallel_model.gather(held["state"])
    weights = _whole_weights(run, copy)
    return Snapshot(replace(run.state), _with_scaler(run, held), weights)


def sharded_snapshot(run: Run) -> Snapshot:
    """This worker's shards of a run for which `can_stream`: copies with `training.async_save`."""
    rest, sets = _in_sets(run)
    writes = run.group.model_parallel_size == 1 or run.group.dp_rank == 0
    shards = ShardedTensors(sets, run.config.training.async_save, writes)
    return Snapshot(replace(run.state), _HostCopy(keep=True)(rest), None, shards)


def gathered_snapshot(run: Run) -> tuple[Snapshot, GatheredTensors]:
    """A run for which `can_stream`, whose tensors are gathered one by one while it is written."""
    rest, sets = _in_sets(run)
    parts = GatheredTensors(sets)
    return Snapshot(replace(run.state), rest, None, parts), parts


def gathered_weights(run: Run) -> GatheredTensors | None:
    """The weights, to be gathered one by one; None where `final_weights` gives them."""
    if not can_stream(run.module.model):
        return None
    return GatheredTensors({WEIGHTS: named_weights(run.module.model)})


def final_weights(run: Run) -> dict[str, torch.Tensor] | None:
    """What `snapshot` holds of the model; None where each worker has it whole anyway."""
    if not is_shared_out(run.module) and run.group.model_parallel_size == 1:
        return None
    return _whole_weights(run, _HostCopy(run.parallel_model.contributes))


def can_stream(model: torch.nn.Module) -> bool:
    """Whether a model is sharded, and its weights have the names of their file."""
    if isinstance(model, PeftModel) or not is_shared_out(model):
        return False
    if any(is_partitioned(weight) for weight in model.parameters()):
        # by DeepSpeed, in pieces that have no place in the file
        return False
    return not conversions(model)


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model, each once, by the name that it has in a file."""
    ignored = ignored_on_save(causal_model(model))
    found: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, weight in state.items():
        if name not in ignored:
            found.setdefault(id(weight), name)
    return {name: state[name] for name in found.values()}


def _in_sets(run: Run) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """Optimizer and scaler state without the large tensors; these and the weights by their file."""
    rest, moments = split_moments(_with_scaler(run, run.parallel_model.optimizer_state()))
    return rest, {WEIGHTS: named_weights(run.module.model), MOMENTS: moments}


def _with_scaler(run: Run, optimizer: dict[str, Any]) -> dict[str, Any]:
    """All that is no weight: completions too, which other weights made for the next step."""
    completions = run.rollouts.saved(run.state.step) if run.rollouts else {}
    return {"optimizer": optimizer, "scaler": run.scaler.state_dict(), **completions}


def _whole_weights(run: Run, copy: _HostCopy) -> dict[str, torch.Tensor] | None:
    """The weights that a checkpoint holds, of all workers; None on those that have none."""
    weights: dict[str, torch.Tensor] | None = run.parallel_model.gather(
        copy(_saved_weights(run.module.model))
    )
    return weights


def _saved_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds: all, or those of the adapters."""
    state = model.state_dict(keep_vars=True)
    if not isinstance(model, PeftModel):
        return state
    return {name: value for name, value in state.items() if value.requires_grad}


class _HostCopy:
    """Copies tensors to host memory; what shared memory before shares it after.

    Those that are sharded are gathered one by one; a worker that does not `keep` them takes part
    and has None.
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
