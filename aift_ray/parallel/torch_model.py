"""A parallel model whose optimizer is one of torch's kind: its methods are functions of a strategy.

Each strategy says how gradients are made; unscaling, clipping and the step are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from aift_ray.data.collate import MicroBatch
from aift_ray.parallel import optimizer_state
from aift_ray.parallel.dtensor_utils import clip_gradients, gradient_norm
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, MicroBatches

Scale = Callable[[torch.Tensor], torch.Tensor]


def _as_given(own: dict[str, Any]) -> dict[str, Any]:
    return own


@dataclass
class TorchModel:
    """Implements `protocol.ParallelModel`, whose attributes and methods it has.

    Attributes:
        accumulate: makes the gradients of micro-batches, given how a loss is scaled; their loss.
        norm_of: the norm of the gradients of all workers, of this worker's parameters.
        gathered: brings the parts of all workers together on worker 0.
    """

    module: LossModel
    group: Group
    accumulate: Callable[[MicroBatches, Scale], torch.Tensor]
    norm_of: Callable[[Iterable[torch.Tensor]], torch.Tensor] = gradient_norm
    gathered: Callable[[dict[str, Any]], dict[str, Any]] = _as_given
    contributes: bool = False
    _optimizer: torch.optim.Optimizer | None = None
    _scaler: torch.amp.GradScaler | None = None

    def __post_init__(self) -> None:
        self.contributes = self.contributes or self.group.is_main_process

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
        """Accumulate the gradients of a step; the summed loss, ()."""
        return self.accumulate(step, self.scaler.scale)

    def clip_gradients(self, limit: float) -> torch.Tensor:
        """Scale all gradients down to the norm `limit`; their norm before that, ()."""
        self.scaler.unscale_(self.optimizer)
        return clip_gradients(self.module.parameters(), limit, self.norm_of)

    def step(self) -> None:
        """Take the optimizer's step, which the scaler leaves out after an overflow."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def optimizer_state(self) -> dict[str, Any]:
        """The moments of each weight by its name."""
        return optimizer_state.saved(self.optimizer)

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Continue from the moments of whole weights."""
        optimizer_state.restore(self.optimizer, saved)

    def gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """Tensors of all parts, on worker 0."""
        return self.gathered(own)


@dataclass(frozen=True)
class OneByOne:
    """Each micro-batch passes forward and backward before the next one.

    Gradients are averaged over workers: each multiplies its part by their number.

    Attributes:
        forward: the loss of a batch, whose backward pass joins the workers.
        no_sync: a context in which backward passes join no workers; all but the last of a step.
        averaged: the number of workers over which gradients are averaged; None: replicas.
    """

    forward: Callable[[MicroBatch], torch.Tensor]
    group: Group
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    averaged: int | None = None

    def __call__(self, step: MicroBatches, scale: Scale) -> torch.Tensor:
        """Gradients of all micro-batches; their summed loss, ()."""
        total = torch.zeros((), device=self.group.device)
        parts = self.averaged or self.group.dp_size
        for micro, batch in enumerate(step.batches):
            step.seed(micro)
            with nullcontext() if micro == len(step.batches) - 1 else self.no_sync():
                with step.autocast():
                    loss = self.forward(batch)
                scale(loss * (parts / step.divisor)).backward()
            total += loss.detach()
        return total
