"""Scaled rotary position embeddings: rows longer than those that a model was trained on.

The scaling is a change of the model's configuration (transformers' `rope_parameters`), so it
belongs to the location that a model is opened from: whatever reads the configuration there reads
the scaled one. A whole model is saved with it; an adapter remembers it, and its base is opened so.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from aift_ray.config.rope_scaling import RopeScaling
from aift_ray.errors import ModelError, Problem
from aift_ray.models.families.refusals import is_llama_like, refusal

FIELD = "rope_scaling"
# of several kinds of layers that which sees the whole text; windows stay as short as they are
_WHOLE = "full_attention"


class ScaledLocation(str):
    """The folder or Hub id of a model that is opened with scaled rotary embeddings.

    Attributes:
        scaling: KIND:FACTOR, as of `RopeScaling`.
    """

    scaling: str

    def __new__(cls, location: str, scaling: str) -> ScaledLocation:
        made = super().__new__(cls, location)
        made.scaling = scaling
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return ScaledLocation, (str(self), self.scaling)


def scaled(location: str, scaling: str | None) -> str:
    """`location`, whose model is opened with a scaling, if any."""
    return location if scaling is None else ScaledLocation(location, scaling)


def scaling_of(location: str) -> str | None:
    """The scaling that the model of a location is opened with, beside that of its own files."""
    return location.scaling if isinstance(location, ScaledLocation) else None


def scale(config: PreTrainedConfig, scaling: str) -> None:
    """Write a scaling into a model's configuration, as transformers would read it there.

    Raises:
        ModelError: the model can't be scaled so.
    """
    asked = RopeScaling.parse(scaling)
    why = unfit(config, asked)
    if why:
        raise ModelError([why])
    text: Any = config.get_text_config(decoder=True)
    rope = _parameters(text)
    original = _original(text, rope)
    rope.update(rope_type=asked.kind, factor=asked.factor)
    if asked.kind != "linear":
        rope["original_max_position_embeddings"] = original
    if asked.kind == "llama3":
        rope.setdefault("low_freq_factor", 1.0)
        rope.setdefault("high_freq_factor", 4.0)
    text.max_position_embeddings = math.floor(original * asked.factor)
    text.validate_rope()


def unfit(config: PreTrainedConfig, asked: RopeScaling) -> Problem | None:
    """Why a model's embeddings can't be scaled; None where they can."""
    text: Any = config.get_text_config(decoder=True)
    kind = str(config.model_type)

    def refused(what: str) -> Problem:
        return refusal(kind, what, "leave it out", is_llama_like, FIELD)

    if text is not config:
        return refused("the files of a model with towers keep their own configuration")
    rope = _parameters(text)
    if not rope or not getattr(text, "max_position_embeddings", None):
        return refused("its layers have no rotary position embeddings with a longest position")
    own = rope.get("rope_type", "default")
    if own not in ("default", asked.kind):
        return refused(f"its embeddings are scaled already, by {own}; give {own}:FACTOR")
    if not _reads_kinds(config):
        return refused("transformers computes its rotary embeddings without scaling")
    return None


def needed(config: PreTrainedConfig, length: int) -> str | None:
    """The scaling with which a model takes `length` tokens; None: it can't be scaled."""
    text: Any = config.get_text_config(decoder=True)
    rope = _parameters(text)
    own = rope.get("rope_type", "default")
    asked = own if own in ("linear", "llama3") else "yarn"
    if unfit(config, RopeScaling(asked, 2.0)):
        return None
    return str(RopeScaling(asked, math.ceil(length / _original(text, rope))))


def _parameters(text: PreTrainedConfig) -> dict[str, Any]:
    """The rotary settings of the layers that see the whole text; empty where there are none."""
    found: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in found.values()):
        found = found.get(_WHOLE) or {}
    return found


def _original(text: PreTrainedConfig, rope: dict[str, Any]) -> int:
    """Tokens that a model took before its embeddings were scaled."""
    own = rope.get("original_max_position_embeddings")
    if own is None and rope.get("rope_type") == "linear":
        own = text.max_position_embeddings // rope["factor"]
    return int(own or text.max_position_embeddings)


def _reads_kinds(config: PreTrainedConfig) -> bool:
    """Whether transformers' code of a family looks at the kind of scaling."""
    # imports the modelling code of the family
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return made is not None and hasattr(sys.modules[made.__module__], "ROPE_INIT_FUNCTIONS")
