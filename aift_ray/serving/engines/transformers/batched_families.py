"""Whether the engine transformers answers prompts of a model family in one batch, and right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aift_ray.errors import ModelError
from aift_ray.models.families import family_support
from aift_ray.models.families.refusals import check_layers, is_batched, refusal
from aift_ray.serving.engines.transformers.kv_cache import RowsCache
from aift_ray.serving.engines.vllm import vllm_families

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNEVEN = "prompts of uneven length change each other's answers in {}"


def check_batched(name: str, config: PreTrainedConfig, layout: str | None = None) -> None:
    """Refuse a family that the table says can't be answered in batches.

    Args:
        name: of the model, in messages.
        config: the model's.
        layout: what works instead; None: another engine, if that has the model.

    Raises:
        ModelError: with the reason.
    """
    check_layers(config)
    found, kind = family_support.known(config), family_support.family_of(config)
    what = ""
    if isinstance(found, family_support.Refusal):
        what = f"{name} can't be computed: {found.why}"
    elif found and not found.batched:
        what = UNEVEN.format(name)
    if what:
        layout = layout or vllm_families.elsewhere(config)
        raise ModelError([refusal(kind, what, layout, is_batched)])
    RowsCache(config)
