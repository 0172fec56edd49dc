"""Networks of the catalog inside the files that the Hub has of them, to the last parameter.

These repositories hold more than the language model that is trained here: towers for images and
sound, and a layer that predicts a second token. What the catalog says of the language model is
right if it and those together have as many parameters as the Hub counts in the files.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from aift_ray.models.catalog import CATALOG

GEMMA_3 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
GEMMA_4 = {
    "model_type": "gemma4_vision",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "standardize": True,
}
GEMMA_4_SMALL = {"model_type": "gemma4_vision", "use_clipped_linears": True}
GEMMA_4_SOUND = {"model_type": "gemma4_audio"}
GEMMA_4_UNIFIED = {
    "model_type": "gemma4_unified_vision",
    "mm_embed_dim": 3840,
    "mm_posemb_size": 1120,
    "model_patch_size": 48,
    "output_proj_dims": 3840,
}
GEMMA_4_UNIFIED_SOUND = {
    "model_type": "gemma4_unified_audio",
    "audio_embed_dim": 640,
    "hidden_size": 640,
    "output_proj_dims": 640,
}
QWEN = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
QWEN_MIDDLE = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
QWEN_SMALL = {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12}

# name: parameters that the Hub counts, tower for images, tower for sound
PUBLISHED: dict[str, tuple[int, dict[str, Any], dict[str, Any] | None]] = {
    "Qwen/Qwen3.5-0.8B": (873_438_784, QWEN_SMALL, None),
    "Qwen/Qwen3.5-2B": (2_274_069_824, QWEN_MIDDLE, None),
    "Qwen/Qwen3.5-4B": (4_659_865_088, QWEN_MIDDLE, None),
    "Qwen/Qwen3.5-9B": (9_653_104_368, QWEN, None),
    "Qwen/Qwen3.6-27B": (27_781_427_952, QWEN, None),
    "Qwen/Qwen3.6-35B-A3B": (35_951_822_704, QWEN, None),
    "google/gemma-3-4b-it": (4_300_079_472, GEMMA_3, None),
    "google/gemma-3-12b-it": (12_187_325_040, GEMMA_3, None),
    "google/gemma-3-27b-it": (27_432_406_640, GEMMA_3, None),
    "google/gemma-4-E2B-it": (5_123_178_051, GEMMA_4_SMALL, GEMMA_4_SOUND),
    "google/gemma-4-E4B-it": (7_996_156_490, GEMMA_4_SMALL, GEMMA_4_SOUND),
    "google/gemma-4-12B-it": (11_959_730_224, GEMMA_4_UNIFIED, GEMMA_4_UNIFIED_SOUND),
    "google/gemma-4-26B-A4B-it": (25_805_936_206, GEMMA_4, None),
    "google/gemma-4-31B-it": (31_273_088_876, GEMMA_4, None),
}


def whole(text: dict[str, Any], images: dict[str, Any], sound: dict[str, Any] | None) -> Any:
    """The model of images, sound and text around a language model, on the meta device."""
    kind = text["model_type"].removesuffix("_text")
    towers: dict[str, Any] = {"vision_config": images, "audio_config": sound}
    if kind.startswith("qwen"):
        towers = {"vision_config": images | {"out_hidden_size": text["hidden_size"]}}
        towers["tie_word_embeddings"] = text["tie_word_embeddings"]
    elif kind == "gemma3":
        del towers["audio_config"]
    config = AutoConfig.for_model(kind, text_config=text, **towers)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def unread(model: PreTrainedModel, text: dict[str, Any]) -> int:
    """Parameters of the files that transformers does not read as parameters, or not at all."""
    layers = model.model.language_model.layers
    if text["model_type"].startswith("qwen"):
        # one more layer, which reads the embedding of a token beside the hidden state before it
        width = text["hidden_size"]
        return sum(p.numel() for p in layers[-1].parameters()) + 2 * width**2 + 3 * width
    scales = ("layer_scalar", "std_bias", "std_scale")
    count = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith(scales))
    for layer in layers[len(layers) - text.get("num_kv_shared_layers", 0) :]:
        # keys and values of its own, though it reads an earlier layer's
        head = layer.self_attn.head_dim
        count += 2 * text["hidden_size"] * text["num_key_value_heads"] * head + head
    return count


@pytest.mark.parametrize("name", PUBLISHED)
def test_language_model_and_towers_are_what_the_hub_counts(name: str) -> None:
    entry = CATALOG[name]
    total, images, sound = PUBLISHED[name]
    model = whole(entry.config, images, sound)
    inner = sum(p.numel() for p in model.model.language_model.parameters())
    head = 0 if entry.architecture.tied else model.lm_head.weight.numel()
    assert inner + head == entry.architecture.parameters
    assert model.num_parameters() + unread(model, entry.config) == total
    assert total * 2 / 2**30 < entry.min_gpu_memory_gb  # also where the towers are loaded with it
