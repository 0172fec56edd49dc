"""Models that score answers: a decoder with one output in place of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from aift_ray.errors import Problem
from aift_ray.models.families.family_support import family_of
from aift_ray.models.families.refusals import refusal
from aift_ray.models.wrappers import is_wrapper

HEAD = "score"


@dataclass(frozen=True)
class Scored:
    """How a model is made to score texts.

    Attributes:
        seed: of the new output layer.
        pad_id: the token that transformers passes over when it looks for the last one of a text.
    """

    seed: int
    pad_id: int


def scoring_class(config: Any) -> Any:
    """transformers' class of a family that classifies texts; None where there is none."""
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)


def unfit(config: Any) -> list[Problem]:
    """Why no model that scores can be made of a family."""
    kind = scoring_class(config)
    if kind is None or is_wrapper(config):
        what = "transformers has no class of it that scores texts, which objective reward trains"
        layout = "give --objective dpo, which trains on the same rows without a scoring model"
        return [refusal(family_of(config), what, layout, field="objective")]
    return []


def with_head(config: Any, pad_id: int) -> Any:
    """The same configuration, for a model with one output a text; `pad_id` as of `Scored`."""
    config.num_labels = 1
    config.pad_token_id = pad_id
    # else transformers warns of a loss of its own
    config.problem_type = "regression"
    return config


def begin_head(model: PreTrainedModel, seed: int) -> None:
    """Give a new output layer the same small random weights on each worker."""
    head: Any = getattr(model, HEAD)
    numbers = torch.Generator().manual_seed(seed)
    width = float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    for weight in head.parameters():
        weight.data.copy_(torch.randn(weight.shape, generator=numbers) * width)


def last_tokens(ids: torch.Tensor, ends: torch.Tensor, pad_id: int) -> torch.Tensor:
    """Where each document is scored: at its last token that is none of padding.

    Args:
        ids: (rows, tokens).
        ends: (documents,), flat positions of their last tokens.

    Returns:
        (documents,), flat positions.
    """
    flat = ids.flatten()
    places = torch.arange(len(flat), device=ids.device)
    real = torch.where(flat != pad_id, places, torch.zeros_like(places))
    return real.cummax(0).values[ends]
