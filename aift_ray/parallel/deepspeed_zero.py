"""ZeRO by DeepSpeed: stages 1 to 3 as an engine of theirs. The only file that imports it.

The engine takes the backward pass and the optimizer's step; batches, loss, learning rate and
checkpoints are the run's own. Trained weights are held in fp32 and computed in the run's precision
under autocast, as with the other strategies, so a checkpoint holds the same tensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from aift_ray.data.collate import MicroBatch
from aift_ray.models.decoder import decoder_blocks
from aift_ray.parallel import deepspeed_compat
from aift_ray.parallel.dtensor_utils import widened
from aift_ray.parallel.group import Group
from aift_ray.parallel.optimizer_state import FACTOR, check_groups
from aift_ray.parallel.protocol import LossModel, MicroBatches, ParallelModel

_MOMENTS = ("exp_avg", "exp_avg_sq")
# steps between lines of DeepSpeed's own about its progress: the run has its own
_NEVER = 2**31


def wrap(
    module: LossModel,
    group: Group,
    compute: torch.dtype,
    stage: int,
    options: Mapping[str, object] = MappingProxyType({}),
) -> ParallelModel:
    """`module`, whose optimizer state (stage 1), gradients (2) and weights (3) are partitioned.

    They are once the model has an optimizer; until then each worker has it whole.

    Args:
        compute: dtype of matrix products.
        options: of the engine's `zero_optimization`.
    """
    widened(module).to(group.device)
    return ZeroModel(module, group, compute, stage, options)


class ZeroModel:
    """Implements `protocol.ParallelModel` by a DeepSpeed engine."""

    def __init__(
        self,
        module: LossModel,
        group: Group,
        compute: torch.dtype,
        stage: int,
        options: Mapping[str, object],
    ) -> None:
        self.module, self.contributes = module, group.is_main_process
        self._group, self._compute, self._stage = group, compute, stage
        self._options = options
        self._weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # DeepSpeed has no types
        self._engine: Any = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._scaler: torch.amp.GradScaler | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the engine steps, over its partitions of the weights."""
        assert self._optimizer is not None
        return self._optimizer

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler that is not enabled."""
        assert self._scaler is not None
        return self._scaler

    def set_optimizer(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Partition the model and the state of `optimizer` over the workers."""
        deepspeed = _imported(self._group.device)
        self._optimizer, self._scaler = optimizer, scaler
        _compute_in(self.module, self._group.device, self._compute)
        self._engine, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=optimizer,
            config=_config(self._stage, self._group.world_size, self._options),
            dist_init_required=False,
        )
        if self._stage == 3:
            # the loss reads the output layer itself, and adapters may be beside the blocks
            for weight in _outside_blocks(self.module):
                deepspeed.zero.register_external_parameter(self.module, weight)

    def backward(self, step: MicroBatches) -> torch.Tensor:
        """Accumulate the gradients of a step; the summed loss, ()."""
        total = torch.zeros((), device=self._group.device)
        for micro, batch in enumerate(step.batches):
            step.seed(micro)
            self._engine.set_gradient_accumulation_boundary(micro == len(step.batches) - 1)
            loss = self._engine(batch)
            part = loss * (self._group.dp_size / step.divisor)
            self._engine.backward(part, scale_wrt_gas=False)
            total += loss.detach()
        return total

    def clip_gradients(self, limit: float) -> torch.Tensor:
        """Have the step clip to the norm `limit`; the norm before that, ()."""
        self._engine.optimizer.clip_grad = limit
        return deepspeed_compat.gradient_norm(self._engine.optimizer, self._stage)

    def step(self) -> None:
        """Clip, and take the optimizer's step."""
        self._engine.step()

    def zero_grad(self) -> None:
        """Drop the gradients, those of the engine's partitions too."""
        self._engine.optimizer.zero_grad(set_to_none=True)
        deepspeed_compat.drop_partitioned_gradients(self._engine.optimizer, self._stage)

    def optimizer_state(self) -> dict[str, Any]:
        """The moments of each weight, whole, in host memory of worker 0; others have none."""
        from deepspeed.utils import safe_get_full_optimizer_state

        factors = [group[FACTOR] for group in self.optimizer.param_groups]
        found: dict[str, dict[str, torch.Tensor]] = {}
        steps = self._steps()
        if steps is None:
            return {"state": found, "factors": factors}
        deepspeed_compat.link_moments(self._engine.optimizer, self._stage)
        for name, weight in self._weights.items():
            moments = {kind: safe_get_full_optimizer_state(weight, kind) for kind in _MOMENTS}
            if self._group.is_main_process:
                host = {kind: value.to("cpu", copy=True) for kind, value in moments.items()}
                found[name] = {"step": steps.clone(), **host}
        return {"state": found, "factors": factors}

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Continue from the moments of whole weights, of which each worker takes its partitions."""
        from aift_ray.parallel.bnb_adamw import in_32_bits

        check_groups(self.optimizer, saved)
        state = {name: in_32_bits(moments) for name, moments in saved["state"].items()}
        if not state:
            return
        done = next(iter(state.values()))["step"]
        for flat in self._partitions():
            self.optimizer.state[flat] = {
                "step": torch.as_tensor(float(done), device=flat.device),
                **{kind: torch.zeros_like(flat) for kind in _MOMENTS},
            }
        deepspeed_compat.link_moments(self._engine.optimizer, self._stage)
        for name, weight in self._weights.items():
            if name in state:
                for kind in _MOMENTS:
                    self._put(weight, state[name][kind], kind)

    def gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """As given: worker 0 has everything."""
        return own

    def _put(self, weight: nn.Parameter, value: torch.Tensor, kind: str) -> None:
        """Take this worker's partition of a moment."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(self._group.device, torch.float32)
        if self._stage < 3:
            safe_set_full_optimizer_state(weight, value, kind)
            return
        whole: Any = weight
        # all partitions have the same size: the last is padded
        size = whole.partition_numel()
        padded = value.new_zeros(size * self._group.world_size)
        padded[: value.numel()] = value.flatten()
        safe_set_local_optimizer_state(weight, padded[size * self._group.rank :][:size], kind)

    def _partitions(self) -> list[torch.Tensor]:
        """This worker's partitions of all trained weights."""
        return deepspeed_compat.partitions(self._engine.optimizer, self._stage)

    def _steps(self) -> torch.Tensor | None:
        """The steps that the optimizer has taken; None: it has no state yet."""
        state = self.optimizer.state
        known = [state[flat]["step"] for flat in self._partitions() if state.get(flat)]
        return known[0].detach().cpu() if known else None


def whole_partitioned(weight: torch.Tensor) -> torch.Tensor:
    """A copy of all of a weight of stage 3; every worker must call this alike."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()


def _imported(device: torch.device) -> Any:
    """DeepSpeed, set for this process's device, without compiling anything."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # its launcher would set it
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed_compat.without_shared_memory()
    return deepspeed


def _config(stage: int, world: int, options: Mapping[str, object]) -> dict[str, Any]:
    """What the engine is configured with; sizes of batches are the run's own business."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "gradient_clipping": 0.0,
        "steps_per_print": _NEVER,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"overlap_comm": False, **options, "stage": stage},
    }


def _compute_in(module: LossModel, device: torch.device, compute: torch.dtype) -> None:
    """Have `module` compute under autocast: the engine leaves that of its caller."""
    if compute is torch.float32:
        return
    forward = module.forward

    def computed(batch: MicroBatch) -> torch.Tensor:
        context: AbstractContextManager[object] = (
            torch.autocast(device.type, dtype=compute, cache_enabled=False)
            if module.training
            else nullcontext()
        )
        with context:
            return forward(batch)

    module.forward = computed  # type: ignore[method-assign]


def _outside_blocks(module: LossModel) -> list[nn.Parameter]:
    """The weights beside the decoder's blocks, each once."""
    inside = {id(p) for block in decoder_blocks(module.model) for p in block.parameters()}
    return [p for p in module.parameters() if id(p) not in inside]
