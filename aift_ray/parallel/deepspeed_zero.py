"""ZeRO by DeepSpeed: stages 1 to 3 as an engine of theirs.

Only `deepspeed_compat` imports it.

The engine takes the backward pass and the optimizer's step; batches, loss, learning rate and
checkpoints are the run's own. Trained weights are held in fp32 and computed in the run's precision
under autocast, as with the other strategies, so a checkpoint holds the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from aift_ray.data.collate import MicroBatch
from aift_ray.models.bnb.shards_4bit import gather_shards
from aift_ray.models.decoder import causal_model, decoder_blocks
from aift_ray.parallel import deepspeed_compat
from aift_ray.parallel.dtensor_utils import widened
from aift_ray.parallel.group import Group, begin_alone
from aift_ray.parallel.protocol import (
    FACTOR,
    LossModel,
    MicroBatches,
    ParallelModel,
    check_groups,
)
from aift_ray.parallel.torch_model import TorchModel

_MOMENTS = ("exp_avg", "exp_avg_sq")
# steps between lines of DeepSpeed's own about its progress: the run has its own
_NEVER = 2**31


def wrap(
    module: LossModel,
    group: Group,
    compute: torch.dtype,
    options: Mapping[str, Any],
) -> ParallelModel:
    """`module`, whose optimizer state (stage 1), gradients (2) and weights (3) are partitioned.

    They are once the model has an optimizer. Of stage 3 the weights stay as they were loaded until
    then, which may be on the disk.

    Args:
        compute: dtype of matrix products.
        options: what the engine is configured with: the stage, and options of it.
    """
    begin_alone(group)
    stage: int = options["zero_optimization"]["stage"]
    if stage < 3:
        gather_shards(module, group.device)
        widened(module).to(group.device)
    return ZeroModel(module, group, compute, stage, options)


class ZeroModel(TorchModel):
    """Its gradients and the optimizer's step are the business of a DeepSpeed engine."""

    def __init__(
        self,
        module: LossModel,
        group: Group,
        compute: torch.dtype,
        stage: int,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(module, group)
        self._compute, self._stage, self._options = compute, stage, options
        self._weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # DeepSpeed has no types
        self._engine: Any = None
        self._deepspeed: Any = None

    def set_optimizer(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Partition the model and the state of `optimizer` over the workers."""
        self._deepspeed = deepspeed = deepspeed_compat.library(self._group.device)
        super().set_optimizer(optimizer, scaler)
        hidden = causal_model(self.module.model).config.get_text_config().hidden_size
        config = engine_config(self._group.world_size, hidden, self._options)
        if any(each.get("device") == "nvme" for each in _offloaded(config)):
            deepspeed_compat.compile_async_io()
        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
        if self._stage == 3:
            deepspeed_compat.partition(_ready(self.module, self._group), config)
        self._engine, *_ = deepspeed.initialize(
            model=_Autocast(self.module, self._compute),
            optimizer=optimizer,
            config=config,
            dist_init_required=False,
        )
        if self._stage == 3:
            # the loss reads the output layer itself, and adapters may be beside the blocks
            for weight in _outside_blocks(self.module):
                deepspeed.zero.register_external_parameter(self.module, weight)
            inner = causal_model(self.module.model)
            deepspeed_compat.release_after_forward(self.module, inner, self._engine.optimizer)

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
        factors = [group[FACTOR] for group in self.optimizer.param_groups]
        found: dict[str, dict[str, torch.Tensor]] = {}
        steps = self._steps()
        if steps is None:
            return {"state": found, "factors": factors}
        deepspeed_compat.link_moments(self._engine.optimizer, self._stage)
        utils = self._deepspeed.utils
        for name, weight in self._weights.items():
            moments = {kind: utils.safe_get_full_optimizer_state(weight, kind) for kind in _MOMENTS}
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
        for number, flat in enumerate(self._partitions()):
            with deepspeed_compat.in_memory(self._engine.optimizer, self._stage, number):
                self.optimizer.state[flat] = {
                    "step": torch.as_tensor(float(done), device=flat.device),
                    **{kind: torch.zeros_like(flat) for kind in _MOMENTS},
                }
        deepspeed_compat.link_moments(self._engine.optimizer, self._stage)
        for name, weight in self._weights.items():
            if name in state:
                for kind in _MOMENTS:
                    self._put(weight, state[name][kind], kind)

    def _put(self, weight: nn.Parameter, value: torch.Tensor, kind: str) -> None:
        """Take this worker's partition of a moment."""
        utils = self._deepspeed.utils
        value = value.to(self._group.device, torch.float32)
        if self._stage < 3:
            utils.safe_set_full_optimizer_state(weight, value, kind)
            return
        whole: Any = weight
        # all partitions have the same size: the last is padded
        size = whole.partition_numel()
        padded = value.new_zeros(size * self._group.world_size)
        padded[: value.numel()] = value.flatten()
        utils.safe_set_local_optimizer_state(weight, padded[size * self._group.rank :][:size], kind)

    def _partitions(self) -> list[torch.Tensor]:
        """This worker's partitions of all trained weights."""
        return deepspeed_compat.partitions(self._engine.optimizer, self._stage)

    def _steps(self) -> torch.Tensor | None:
        """The steps that the optimizer has taken; None: it has no state yet."""
        state = self.optimizer.state
        known = [state[flat]["step"] for flat in self._partitions() if state.get(flat)]
        return known[0].detach().cpu() if known else None


def engine_config(world: int, hidden: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine is configured with; sizes of batches are the run's own business.

    Args:
        hidden: the model's width, by which buckets have the sizes that transformers' Trainer fills
            in for "auto"; DeepSpeed's own defaults take 2 GB of each GPU.
    """
    sizes = {
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "gradient_clipping": 0.0,
        "steps_per_print": _NEVER,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW takes the step in host memory too
        "zero_force_ds_cpu_optimizer": False,
        **options,
        "zero_optimization": {"overlap_comm": False, **sizes, **options["zero_optimization"]},
    }


def _offloaded(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections of `config` that keep something outside the GPU."""
    return [each for each in config["zero_optimization"].values() if isinstance(each, dict)]


def _ready(module: LossModel, group: Group) -> Iterator[nn.Module]:
    """The blocks of `module`, then all of it, each with its weights as they are trained.

    Each is read from where the weights were loaded when its turn comes.
    """
    for block in decoder_blocks(module.model):
        gather_shards(block, group.device)
        yield widened(block).to(group.device)
    for weight in _outside_blocks(module):
        if weight.requires_grad:
            weight.data = weight.data.float()
    yield module
    for buffer in module.buffers():
        buffer.data = buffer.data.to(group.device)


class _Autocast(nn.Module):
    """`module` as it is trained, in lower precision: the engine leaves its caller's autocast."""

    def __init__(self, module: LossModel, compute: torch.dtype) -> None:
        super().__init__()
        self._module, self._compute = module, compute

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The summed loss of `batch`, a scalar."""
        device, narrow = batch.input_ids.device.type, self._compute is not torch.float32
        with torch.autocast(device, self._compute, enabled=narrow, cache_enabled=False):
            return self._module(batch)


def _outside_blocks(module: LossModel) -> list[nn.Parameter]:
    """The weights beside the decoder's blocks, each once."""
    inside = {id(p) for block in decoder_blocks(module.model) for p in block.parameters()}
    return [p for p in module.parameters() if id(p) not in inside]
