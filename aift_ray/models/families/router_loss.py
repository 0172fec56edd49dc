"""The auxiliary loss of a mixture's routers, by which they send as many tokens to each expert.

It acts where the model's configuration asks for it as transformers does (`output_router_logits`),
and the routers are trained. Source: Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aift_ray.config import RunConfig
from aift_ray.errors import Problem
from aift_ray.models.decoder import causal_model
from aift_ray.models.families.refusals import has_experts, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_NAMES = ("router_aux_loss_coef", "num_experts", "num_experts_per_tok")
_REMEDY = "set output_router_logits to false in its config.json"

Balance = Callable[[tuple[torch.Tensor, ...], int, int, torch.Tensor | None], torch.Tensor]


class RouterLoss:
    """The auxiliary loss of the micro-batches of a step.

    Args:
        coefficient: of the auxiliary loss in the loss.
        function: of the model's own module: router logits, (tokens, experts) of each block, number
            of experts, experts that a token takes, mask of the tokens; to a scalar.
    """

    def __init__(self, coefficient: float, function: Balance, experts: int, active: int) -> None:
        self._coefficient, self._function = coefficient, function
        self._experts, self._active = experts, active
        self._summed: torch.Tensor | None = None

    def __call__(
        self, logits: tuple[torch.Tensor, ...], mask: torch.Tensor | None, targets: float
    ) -> torch.Tensor:
        """What a micro-batch adds to the sum of its tokens' losses.

        That sum is divided by the supervised tokens of the global batch: the step has the mean over
        its micro-batches, each weighed by its supervised tokens.

        Args:
            mask: (rows, tokens), of padded rows.
            targets: supervised tokens of the micro-batch.
        """
        loss = self._function(logits, self._experts, self._active, mask) * targets
        summed = loss.detach()
        self._summed = summed if self._summed is None else self._summed + summed
        return loss * self._coefficient

    def taken(self) -> torch.Tensor:
        """The auxiliary loss of the micro-batches since the last call, times their targets, ()."""
        summed, self._summed = self._summed, None
        return torch.zeros(()) if summed is None else summed.double()


def router_loss(model: nn.Module) -> RouterLoss | None:
    """The auxiliary loss of a model whose routers are trained; None: it has none."""
    inner: Any = causal_model(model)
    if not balances(inner.config) or _unknown(inner) or inner is not model:
        return None
    coefficient, experts, active = (getattr(inner, name) for name in _NAMES)
    return RouterLoss(coefficient, _function(inner), experts, active)


def refused(model: nn.Module, config: RunConfig) -> list[Problem]:
    """Why full training can't have the auxiliary loss that a model's configuration asks for."""
    inner: Any = causal_model(model)
    kind = inner.config.model_type
    if not balances(inner.config):
        return []
    if _unknown(inner):
        what = "its configuration asks for an auxiliary loss (output_router_logits), and how it is "
        what += "computed is not known"
        return [refusal(kind, what, f"{_REMEDY}, or use --method lora", has_experts)]
    if config.parallel.strategy == "pipeline":
        what = "the auxiliary loss that the model's configuration asks for (output_router_logits) "
        what += "is of the routers of all blocks, and a stage has some of them"
        remedy = f"use --strategy fsdp, or {_REMEDY}"
        return [refusal(kind, what, remedy, field="parallel.strategy")]
    return []


def note(model: nn.Module) -> list[str]:
    """What to tell who trains adapters on a model whose configuration asks for the loss."""
    if not balances(causal_model(model).config):
        return []
    return [
        "output_router_logits of the model's config.json does nothing: LoRA freezes the routers"
    ]


def balances(config: PreTrainedConfig) -> bool:
    """Whether a model's configuration asks for the auxiliary loss."""
    config = config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return False
    # of a family without this coefficient it is not known to be none
    return getattr(config, "router_aux_loss_coef", None) != 0


def _unknown(inner: object) -> bool:
    known = all(isinstance(getattr(inner, name, None), int | float) for name in _NAMES)
    return not known or _function(inner) is None


def _function(inner: object) -> Any:
    return getattr(sys.modules[type(inner).__module__], "load_balancing_loss_func", None)
