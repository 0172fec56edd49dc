"""What a model is to the training loop, however it is spread over the workers of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from aift_ray.data.collate import MicroBatch
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.families.router_loss import RouterLoss
from aift_ray.parallel.context_parallel import ContextGroup

# the key of a group of weights that holds its learning rate over that of the run
FACTOR = "factor"


class LossModel(nn.Module):
    """A language model that gives the loss of a batch and generates, without joining gradients.

    Every worker that holds a part of the same weights calls each method alike.

    Attributes:
        model: the language model, with adapters if it has any.
        routers: the auxiliary loss of a mixture's routers; None where there is none.
        context: the workers that divide the tokens of each row; None: rows are whole.
        whole_weights: a context in which each worker has all weights, and calls `decode` without
            the others.
    """

    model: nn.Module
    routers: RouterLoss | None = None
    context: ContextGroup | None = None
    whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext

    if TYPE_CHECKING:

        def __call__(self, batch: MicroBatch) -> torch.Tensor: ...

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The summed loss of `batch`, a scalar; of comparisons see engine.loss.LossModule."""
        raise NotImplementedError

    def generate(self, **inputs: object) -> torch.Tensor:
        """Token ids, (rows, tokens); takes the arguments of transformers' `generate`."""
        raise NotImplementedError

    def decode(self, **inputs: object) -> CausalLMOutputWithPast:
        """The language model's own forward; in `whole_weights`."""
        raise NotImplementedError


class StageModel(LossModel):
    """A model whose forward pass can be taken in two parts."""

    def states(self, batch: MicroBatch, embedded: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of `batch`, (rows, tokens, width), of its tokens or of `embedded` ones."""
        raise NotImplementedError

    def loss(self, states: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The loss of `batch` from its hidden states."""
        raise NotImplementedError

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) in fp32 of hidden states (..., width)."""
        raise NotImplementedError


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one optimizer step on this worker; as many on each worker.

    Attributes:
        divisor: the number by which the summed loss of the global batch is divided.
        seed: makes the random numbers of a micro-step a function of its number.
        autocast: gives the context in which a forward pass computes.
    """

    batches: Sequence[MicroBatch]
    divisor: float
    seed: Callable[[int], None]
    autocast: Callable[[], AbstractContextManager[object]]


class ParallelModel(Protocol):
    """A model spread over the workers of a run by one strategy; the loop knows nothing else of it.

    Every worker calls each method alike. A step is `backward`, `clip_gradients`, `step` (or not,
    where a number is not finite) and `zero_grad`.

    Attributes:
        contributes: whether this worker has tensors that `gather` needs.
    """

    contributes: bool

    @property
    def module(self) -> LossModel:
        """The model as it is evaluated."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, whose groups take the learning rate."""

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss; enabled in fp16 alone."""

    def set_optimizer(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Train with `optimizer`, built over the weights of `module`; without it, evaluate only."""

    def backward(self, step: MicroBatches) -> torch.Tensor:
        """Accumulate the gradients of a step; the summed loss, (), of this worker's part of it."""

    def clip_gradients(self, limit: float) -> torch.Tensor:
        """Scale all gradients down to the norm `limit`, 0 for none; their norm before that, ().

        The device is not waited for.
        """

    def step(self) -> None:
        """Take the optimizer's step with the clipped gradients."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def optimizer_state(self) -> dict[str, Any]:
        """`state`: {name of a weight: its moments}, tensors or shards; `factors` of the groups."""

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Continue from what `optimizer_state` gave, of whole tensors, under any strategy.

        Raises:
            ConfigError: it was made with other groups of weights.
        """

    def gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """Tensors in host memory by name, or dictionaries of such, of all parts, on worker 0."""


def check_groups(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Raise a ConfigError where a saved state was made with other groups of weights."""
    if len(saved["factors"]) != len(optimizer.param_groups):
        what = "was 1 in the run of the checkpoint and is not now, or the other way round"
        raise ConfigError([Problem("lora.lora_plus_ratio", what, "give it as it was")])
