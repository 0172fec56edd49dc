"""Tiny random models of many families, in folders with the shipped tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from tests.conftest import SHIPPED

_VOCABULARY = 5056
# under the names that families use; each takes those that it knows
_SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "vocab_size_per_layer_input": _VOCABULARY,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 3,
    "tie_word_embeddings": False,
    "rotary_dim": 8,
    "query_pre_attn_scalar": 16,
}
_SIZES |= dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64)
_SIZES |= dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size"), 96)
_SIZES |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2)
_SIZES |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4)
_SIZES |= dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads"), 2)
_SIZES |= dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "sliding_window"), 16)
_SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512)
_SIZES |= dict.fromkeys(("moe_intermediate_size", "hidden_size_per_layer_input"), 32)
_SIZES |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
_SIZES |= dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2)
_SIZES |= dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16)
_SIZES |= dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8)
_SIZES |= dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1)


def configured(family: str, **changes: Any) -> Any:
    """The configuration of the language model of a family, in small."""
    default = CONFIG_MAPPING[family]().get_text_config()
    given = default.to_dict()
    known = {k: v for k, v in _SIZES.items() if k in given or k in type(default).attribute_map}
    known |= {k: 0.0 for k, v in given.items() if "drop" in k and isinstance(v, float)}
    kinds = list(dict.fromkeys(given.get("layer_types") or []))
    if kinds:
        known["layer_types"] = (kinds * 2)[:2]
    return type(default)(**known | changes)


def save(config: Any, folder: Path, **options: Any) -> Path:
    """A folder with a random model whose attention is far from uniform; of a wrapper the whole."""
    torch.manual_seed(0)
    wraps = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    kind = AutoModelForMultimodalLM if wraps else AutoModelForCausalLM
    model = kind.from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    model.save_pretrained(folder, **options)
    return companions(folder)


def companions(folder: Path) -> Path:
    """`folder` with the shipped tokenizer and chat template."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SHIPPED / name, folder / name)
    return folder


def make(family: str, folder: Path, **changes: Any) -> Path:
    """A folder with a tiny random model of a family."""
    return save(configured(family, **changes), folder)


_EYES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "image_size": 16,
    "patch_size": 4,
    "position_embedding_size": 64,
    "mm_embed_dim": 32,
    "mm_posemb_size": 16,
    "output_proj_dims": 32,
    "output_channels": 16,
    "mlp_dim": 48,
    "global_attn_indexes": [0],
    "window_size": 2,
    "depth": 2,
    "num_heads": 2,
    "out_hidden_size": 64,
    "projector_input_dim": 32,
    "projector_output_dim": 64,
    "vision_output_dim": 64,
    "num_global_layers": 1,
    "attention_heads": 2,
    "intermediate_layers_indices": [0],
}
_EARS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "output_proj_dims": 32,
    "audio_embed_dim": 32,
    "subsampling_conv_channels": [8, 4],
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "intermediate_size": 48,
    "num_mel_bins": 8,
}


def with_towers(family: str, **changes: Any) -> Any:
    """The configuration of a wrapper in small: its language model, and towers beside it."""
    kind = CONFIG_MAPPING[family]
    changes = _OWN.get(family, {}) | changes
    text = configured(family, **changes)
    towers = {}
    for name, small in (("vision_config", _EYES), ("audio_config", _EARS)):
        spec = kind.sub_configs_defaults.get(name)
        own = getattr(spec, "config_class", spec)
        if own is not None and own.__name__ == "AutoConfig" and family in _OF_OTHERS:
            own = CONFIG_MAPPING[_OF_OTHERS[family]]
        if own is not None and own.__name__ != "AutoConfig":
            known = own().to_dict()
            towers[name] = {key: value for key, value in small.items() if key in known}
            towers[name]["model_type"] = own.model_type
    if family == "gemma3":
        towers["vision_config"] = {k: v for k, v in _EYES.items() if k in SIGLIP}
        towers["mm_tokens_per_image"] = 4
    tied = {"tie_word_embeddings": changes.get("tie_word_embeddings", False)}
    return kind(text_config=text.to_dict(), **towers, **tied)


# what mllama asks for; the last layers of the smaller Gemma 4 use keys and values of earlier ones
_OWN: dict[str, dict[str, Any]] = {
    "mllama": {"bos_token_id": 0},
    "gemma4": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
# whose towers are those of other families
_OF_OTHERS = {"mistral3": "pixtral", "llava": "clip_vision_model"}
SIGLIP = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIGLIP += ("image_size", "patch_size")


def make_hybrid(folder: Path) -> Path:
    """A folder with a tiny random model of linear attention and full attention in turn."""
    kinds = ["linear_attention", "full_attention"] * 2
    return make("qwen3_5_text", folder, num_hidden_layers=4, layer_types=kinds, **_LINEAR)


_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
