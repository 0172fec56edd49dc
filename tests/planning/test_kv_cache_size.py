"""Keys and values that a server keeps, against the caches of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aift_ray.models.catalog import CATALOG
from aift_ray.planning.kv_cache_size import cached_bytes

# one model of each family
MODELS = {entry.architecture.model_type: name for name, entry in CATALOG.items()}
SLOW = set(MODELS) - {"gemma4_text", "lfm2", "qwen3_5_text", "gpt_oss"}


def kept(model: Any, tokens: int) -> int:
    """Numbers of keys and values after so many tokens."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"), past_key_values=cache)
    layers = [
        layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), torch.Tensor)
    ]
    return sum(layer.keys.numel() + layer.values.numel() for layer in layers)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in MODELS]
)
def test_a_token_takes_what_the_cache_of_its_model_grows_by(kind: str) -> None:
    numbers: dict[str, Any] = dict(CATALOG[MODELS[kind]].config)
    wanted = cached_bytes(numbers, 1)
    config = CONFIG_MAPPING[numbers.pop("model_type")](**numbers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").bfloat16()
    with torch.no_grad():
        assert kept(model, 9) - kept(model, 8) == wanted
