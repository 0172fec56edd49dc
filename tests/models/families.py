"""Tiny random models of many families, in folders with the shipped tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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


def save(config: Any, folder: Path) -> Path:
    """A folder with a random model whose attention is far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SHIPPED / name, folder / name)
    return folder


def make(family: str, folder: Path, **changes: Any) -> Path:
    """A folder with a tiny random model of a family."""
    return save(configured(family, **changes), folder)
