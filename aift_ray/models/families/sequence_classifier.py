"""Models that score answers: a decoder with one output in place of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from aift_ray.errors import Problem
from aift_ray.models.families.family_support import family_of
from aift_ray.models.families.refusals import refusal
from aift_ray.models.folder_check import SCORER
from aift_ray.models.wrappers import is_wrapper

HEAD = "score"


@dataclass(frozen=True)
class RewardHead:
    """How a model is made to score texts.

    Attributes:
        seed: of the new output layer.
        pad_id: the token that transformers passes over when it looks for the last one of a text.
    """

    seed: int
    pad_id: int


def scoring_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """transformers' class of a family that classifies texts; None where there is none."""
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    return cast(type[PreTrainedModel] | None, kind)


def unfit(config: PreTrainedConfig) -> list[Problem]:
    """Why no model that scores can be made of a family."""
    kind = scoring_class(config)
    if kind is None or is_wrapper(config):
        what = "transformers has no class of it that scores texts, which objective reward trains"
        layout = "give --objective dpo, which trains on the same rows without a scoring model"
        return [refusal(family_of(config), what, layout, field="objective")]
    named = getattr(config, "architectures", None) or []
    if any(str(one).endswith(SCORER) for one in named) and config.num_labels != 1:
        what = f"is a classifier of {config.num_labels} labels, and objective reward trains one"
        return [Problem("model", what, "give a language model, or a reward model of one label")]
    return []


def without_output(model: PreTrainedModel, names: list[str]) -> list[Problem]:
    """The layers to be trained that a model with a score does not have.

    Args:
        model: the language model of the family.
        names: of the layers, as `lora` has them.
    """
    output: Any = model.get_output_embeddings()
    own = next((name for name, module in model.named_modules() if module is output), "")
    if not own or own.rpartition(".")[2] not in names:
        return []
    what = (
        f"{own} is the output layer, and a reward model has {HEAD} in its place, which is trained"
    )
    return [Problem("lora", f"{what} anyway", "leave it out")]


def with_head(config: PreTrainedConfig, pad_id: int) -> PreTrainedConfig:
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
