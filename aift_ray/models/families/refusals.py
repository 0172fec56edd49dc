"""How a family that is refused is told: its name, the feature, what would work, a near model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG, of_family
from aift_ray.models.families import family_support
from aift_ray.planning.model_shape import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NO_LAYOUT = "no layout works: no packing, strategy or method computes it (docs/models.md)"

PADDED = "pad the rows: --data.packing false"

Fits = Callable[[str], bool]


def is_llama_like(kind: str) -> bool:
    """Whether every strategy splits a model type."""
    return kind in FAMILIES


def has_experts(kind: str) -> bool:
    """Whether every catalogued model of a type is a mixture."""
    found = [one.architecture for one in CATALOG.values() if one.architecture.model_type == kind]
    return bool(found) and all(one.experts > 1 for one in found)


def is_supported(kind: str) -> bool:
    """Whether a model type was seen to be computed right."""
    found = family_support.table().get(kind)
    return found is not None and isinstance(found[1], family_support.Support)


def is_batched(kind: str) -> bool:
    """Whether the engine transformers serves a model type."""
    found = family_support.table().get(kind)
    return found is not None and isinstance(found[1], family_support.Support) and found[1].batched


def check_layers(config: PreTrainedConfig) -> None:
    """Refuse numbers of layers with which transformers' generate fails, with a ModelError."""
    text = config.get_text_config(decoder=True)
    kept, layers = getattr(text, "num_hidden_layers", None), getattr(text, "decoder_layers", None)
    if kept and layers and kept < layers:
        what = (
            f"its config.json has num_hidden_layers {kept} and decoder_layers {layers}, and "
            "transformers makes room for the keys of the former"
        )
        layout = "write the number of layers of its weights into both"
        raise ModelError([refusal(family_support.family_of(config), what, layout)])


def refusal(
    family: str,
    what: str,
    layout: str | None,
    fits: Fits = is_supported,
    field: str | None = None,
) -> Problem:
    """The problem of a model family that lacks something.

    Args:
        family: its model type.
        what: the feature that is missing, and why.
        layout: settings with which a model of the family works, as they are typed; None: none do.
        fits: whether a model type has the feature.
        field: the setting that asks for the feature; None: the model itself does.
    """
    name = f"model family {family}"
    other = of_family(family, fits)
    choose = f"choose another model, such as {other}"
    remedy = f"{layout}; or {choose}" if layout else f"{NO_LAYOUT}; {choose}"
    if field is None:
        return Problem(name, what, remedy)
    return Problem(field, f"{name}: {what}", remedy)
