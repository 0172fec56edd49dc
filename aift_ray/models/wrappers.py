"""Models with towers for images or sounds beside the language model: which class opens what.

Of a wrapper that `AutoModelForCausalLM` knows by its language model alone (Qwen 3.5, Llama 4),
that is opened. Of every other the wrapper's own class is, with nothing in the place of the towers:
its modules keep the names that they have in the whole model, so an adapter fits both.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from aift_ray.errors import ModelError
from aift_ray.models.families.refusals import refusal
from aift_ray.models.families.towers import leave_out, towers
from aift_ray.models.transformers_compat import forget_initialized


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a language model with something beside it."""
    return _language_class(config) is not None or taken_out(config)


def taken_out(config: PreTrainedConfig) -> bool:
    """Whether AutoModelForCausalLM takes the language model out of the whole."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    own = getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "config_class", None)
    return own is not None and own is config.sub_configs.get("text_config")


def language_class(config: PreTrainedConfig) -> Any:
    """What opens the language model of a configuration.

    Raises:
        ModelError: nothing does.
    """
    kind = config.model_type
    found = _language_class(config)
    if found is not None:
        return without_towers(found)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    what = "transformers has no language model of it that stands alone or in a wrapper"
    raise ModelError([refusal(kind, what, None)])


def whole_class(config: PreTrainedConfig) -> Any:
    """What opens all of a model: for a wrapper that class of transformers which has the towers."""
    if taken_out(config):
        return MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]
    return _language_class(config) or AutoModelForCausalLM


def named_for_users(config: PreTrainedConfig) -> str:
    """The class on which plain PEFT loads an adapter that was trained here."""
    found = _language_class(config)
    if found is None or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "AutoModelForCausalLM"
    return "AutoModelForImageTextToText" if _takes_images(config) else str(found.__name__)


def _takes_images(config: object) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _language_class(config: PreTrainedConfig) -> Any:
    """The class of a wrapper from which towers are to be left out; None: there are none to."""
    if config.get_text_config(decoder=True) is config or config.is_encoder_decoder:
        return None
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None if taken_out(config) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]
    return None


@cache
def without_towers(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`model_class`, whose models hold their language model alone."""

    def build(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        leave_out(self, towers(self))

    # saved files bear the class's name
    names = {"__init__": build, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), names)


def materialized(model: PreTrainedModel) -> PreTrainedModel:
    """A model that was built on the meta device, with random weights on the CPU."""
    model.to_empty(device=torch.device("cpu"))
    for module in model.modules():
        forget_initialized(module)
    model.init_weights()
    return model
