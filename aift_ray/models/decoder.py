"""The language model inside what transformers and PEFT build around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from aift_ray.errors import ModelError
from aift_ray.models.families.refusals import refusal

if TYPE_CHECKING:
    # imports bitsandbytes, which takes two seconds that a model without adapters need not wait
    from peft import PeftModel


def causal_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, adapters left in place."""
    if isinstance(model, PreTrainedModel):
        return model
    adapted: PeftModel = model
    inner: PreTrainedModel = adapted.get_base_model()
    return inner


def decoder_of(model: torch.nn.Module) -> PreTrainedModel:
    """The language model's body, which gives hidden states; of a wrapper with other towers too.

    Raises:
        ModelError: it is not known where the body is.
    """
    inner = causal_model(model)
    # the default looks for a module of certain names, and gives the model itself where none is
    for found in (inner.get_decoder(), inner.base_model, getattr(inner, "model", None)):
        if isinstance(found, PreTrainedModel) and found is not inner:
            return found
    raise _unknown(inner, "its language model can't be told apart from the rest of it")


def decoder_blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The blocks of the decoder, in their order.

    Raises:
        ModelError: the model keeps them in another way.
    """
    decoder = decoder_of(model)
    blocks = getattr(decoder, "layers", None)
    if isinstance(blocks, torch.nn.ModuleList):
        return blocks
    number = getattr(decoder.config.get_text_config(), "num_hidden_layers", 0)
    for module in decoder.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == number:
            return module
    raise _unknown(decoder, "it has no list of as many blocks as its configuration says")


def _unknown(model: PreTrainedModel, what: str) -> ModelError:
    return ModelError([refusal(model.config.model_type, what, None)])
