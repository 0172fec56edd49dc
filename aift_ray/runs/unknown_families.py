"""Families that the table does not have, measured before an engine answers in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aift_ray.config import DataConfig, ServeConfig
from aift_ray.data.cache_location import cache_folder
from aift_ray.errors import ModelError
from aift_ray.models import hub
from aift_ray.models.families import family_support
from aift_ray.models.families.refusals import is_batched, refusal
from aift_ray.serving.engines.engine_select import Choice
from aift_ray.serving.engines.transformers.batched_families import UNEVEN, check_batched
from aift_ray.serving.engines.vllm import vllm_families

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def measure_batched(name: str, config: PreTrainedConfig, layout: str | None = None) -> None:
    """Refuse a family that can't be answered in batches; one that the table does not have is
    computed as a tiny model, once.

    Args:
        name: of the model, in messages.
        config: the model's.
        layout: what works instead; None: another engine, if that has the model.

    Raises:
        ModelError: its answers are not those of transformers' eager forward, or not in a batch.
    """
    check_batched(name, config, layout)
    if family_support.known(config):
        return
    # torch
    from aift_ray.engine.family_check import supported

    if not supported(config, "full", cache_folder(DataConfig())).batched:
        layout = layout or vllm_families.elsewhere(config)
        kind = family_support.family_of(config)
        raise ModelError([refusal(kind, UNEVEN.format(name), layout, is_batched)])


def measure_served(config: ServeConfig, engine: Choice) -> None:
    """The same of the base of a server, before replicas of the engine are started.

    Raises:
        ModelError: the engine would not answer as transformers does.
    """
    if engine.engine == "transformers":
        measure_batched(config.model, hub.load_config(hub.resolve(config.model)))
