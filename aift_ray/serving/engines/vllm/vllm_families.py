"""What vLLM serves, as its own registry says: `models/tables/vllm.csv`, by `make vllm-families`.

It is read without vLLM, so a family that vLLM has no network for is refused before a start, and on
machines where it is not installed too.
"""

from __future__ import annotations

import csv
from functools import cache
from typing import TYPE_CHECKING

from aift_ray.errors import Problem
from aift_ray.models.catalog import TABLES
from aift_ray.models.families.family_support import family_of
from aift_ray.models.families.refusals import NO_LAYOUT, is_batched, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TABLE = TABLES / "vllm.csv"
USE_VLLM = "serve it with --engine vllm"


@cache
def table() -> dict[str, bool]:
    """{architecture: whether it takes adapters} of vLLM's networks that write text."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["architecture"]: row["adapters"] == "yes" for row in csv.DictReader(file)}


def serves(config: PreTrainedConfig) -> bool:
    """Whether vLLM has a network for the model of a configuration."""
    return _network(_architectures(config)) is not None


def takes_adapters(config: PreTrainedConfig) -> bool:
    """Whether that network takes adapters."""
    return table().get(_network(_architectures(config)) or "", False)


def is_served(kind: str) -> bool:
    """Whether vLLM has a network for a model type."""
    return _network(architectures_of(kind)) is not None


def is_adapted(kind: str) -> bool:
    """Whether that network takes adapters."""
    return table().get(_network(architectures_of(kind)) or "", False)


def architectures_of(kind: str) -> list[str]:
    """The classes of transformers that open a model type."""
    # slow to import, and of no use to others
    from transformers.models.auto import modeling_auto

    of_text = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    of_wholes = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    return [names[kind] for names in (of_wholes, of_text) if kind in names]


def refused(config: PreTrainedConfig, adapted: bool) -> list[Problem]:
    """What of a model vLLM has no network for.

    Args:
        adapted: adapters are to be served on it.
    """
    kind = family_of(config)
    other = "use --engine transformers" if is_batched(kind) else NO_LAYOUT
    if not serves(config):
        what = "vLLM has no network of it"
        return [refusal(kind, what, other, is_served, "engine")]
    if adapted and not takes_adapters(config):
        what = "vLLM's network of it takes no adapters"
        merge = "merge the adapter into its base (aift-ray quantize --adapter)"
        return [refusal(kind, what, f"{merge}, or {other}", is_adapted, "engine")]
    return []


def elsewhere(config: PreTrainedConfig) -> str | None:
    """How a model that the engine transformers does not serve is served; None: not at all."""
    return USE_VLLM if serves(config) else None


def _architectures(config: PreTrainedConfig) -> list[str]:
    return list(config.architectures or architectures_of(config.model_type))


def _network(architectures: list[str]) -> str | None:
    return next((name for name in architectures if name in table()), None)
