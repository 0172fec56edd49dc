"""A parallel model whose optimizer is one of torch's kind.

Unscaling, clipping and the step are the same for all strategies; how gradients are made and joined
is that of replicas and shards, unless a strategy has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from aift_ray.data.collate import MicroBatch
from aift_ray.parallel import bnb_adamw
from aift_ray.parallel.dtensor_utils import clip_gradients, gradient_norm, shared_like
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import FACTOR, LossModel, MicroBatches, check_groups


class TorchModel:
    """Implements `protocol.ParallelModel`, whose attributes and methods it has.

    Gradients are averaged over workers: each multiplies its part by their number.

    Args:
        forward: the loss of a batch, whose backward pass joins the workers; None: `module` is.
        no_sync: a context in which backward passes join no workers; all but the last of a step.
        averaged: the number of workers over which gradients are averaged; None: replicas.
    """

    def __init__(
        self,
        module: LossModel,
        group: Group,
        forward: Callable[[MicroBatch], torch.Tensor] | None = None,
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
        averaged: int | None = None,
    ) -> None:
        self.module, self.contributes = module, group.is_main_process
        self._group, self._no_sync = group, no_sync
        self._forward = module if forward is None else forward
        self._averaged = averaged or group.dp_size
        self._optimizer: torch.optim.Optimizer | None = None
        self._scaler: torch.amp.GradScaler | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of a model that is trained."""
        assert self._optimizer is not None
        return self._optimizer

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler of a model that is trained."""
        assert self._scaler is not None
        return self._scaler

    def set_optimizer(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Train with `optimizer`."""
        self._optimizer, self._scaler = optimizer, scaler

    def backward(self, step: MicroBatches) -> torch.Tensor:
        """Each micro-batch passes forward and backward before the next one; the summed loss, ()."""
        total = torch.zeros((), device=self._group.device)
        for micro, batch in enumerate(step.batches):
            step.seed(micro)
            with nullcontext() if micro == len(step.batches) - 1 else self._no_sync():
                with step.autocast():
                    loss = self._forward(batch)
                self.scaler.scale(loss * (self._averaged / step.divisor)).backward()
            total += loss.detach()
        return total

    def clip_gradients(self, limit: float) -> torch.Tensor:
        """Scale all gradients down to the norm `limit`; their norm before that, ()."""
        self.scaler.unscale_(self.optimizer)
        return clip_gradients(self.module.parameters(), limit, self.gradient_norm)

    def gradient_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The norm of the gradients of all workers, of this worker's parameters, ()."""
        return gradient_norm(parameters)

    def step(self) -> None:
        """Take the optimizer's step, which the scaler leaves out after an overflow."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def optimizer_state(self) -> dict[str, Any]:
        """The moments of each weight by its name."""
        state, groups = self.optimizer.state, self.optimizer.param_groups
        is_torch = isinstance(self.optimizer, torch.optim.AdamW)
        moments = {
            name: dict(state[weight]) if is_torch else bnb_adamw.saved(state[weight], weight)
            for group in groups
            for name, weight in zip(group["param_names"], group["params"], strict=True)
            if weight in state
        }
        return {"state": moments, "factors": [group[FACTOR] for group in groups]}

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Continue from the moments of whole weights; rates and decay stay as configured."""
        groups, state = self.optimizer.param_groups, saved["state"]
        check_groups(self.optimizer, saved)
        if not isinstance(self.optimizer, torch.optim.AdamW):
            bnb_adamw.restore(self.optimizer, state)
            return
        names = [name for group in groups for name in group["param_names"]]
        weights = [weight for group in groups for weight in group["params"]]
        moments = {
            number: {
                kind: shared_like(value, weight)
                for kind, value in bnb_adamw.in_32_bits(state[name]).items()
            }
            for number, (name, weight) in enumerate(zip(names, weights, strict=True))
            if name in state
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})

    def gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """Tensors of all parts, on worker 0."""
        return own
