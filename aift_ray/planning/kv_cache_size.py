"""Keys and values that a server keeps of a token, from the numbers of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# layers that keep a state of fixed size in place of keys and values
_STATES = ("linear_attention", "conv", "mamba", "mamba2", "recurrent")


def cached_bytes(config: Mapping[str, Any], width: int = 2) -> int:
    """Bytes of a token's keys and values in all layers, `width` a number.

    Windows are left out of account: what is outside of one is kept by transformers all the same.
    """
    numbers = [_numbers(config, kind) for kind in _attending(config)]
    return sum(numbers) * width


def _attending(config: Mapping[str, Any]) -> list[str]:
    """The kinds of the layers that keep keys and values."""
    number = config["num_hidden_layers"]
    kinds = list(config.get("layer_types") or _patterned(config) or ["full_attention"] * number)
    # the last layers of Gemma 3n and 4 use the keys and values of earlier ones
    kinds = kinds[: number - (config.get("num_kv_shared_layers") or 0)]
    return [kind for kind in kinds if kind not in _STATES]


def _patterned(config: Mapping[str, Any]) -> list[str] | None:
    number = config["num_hidden_layers"]
    every = config.get("full_attention_interval")
    if every:
        return ["full_attention" if (n + 1) % every == 0 else "conv" for n in range(number)]
    pattern = config.get("hybrid_override_pattern")
    if pattern:
        return ["full_attention" if each == "*" else "conv" for each in pattern]
    whole = config.get("full_attn_idxs")
    if whole is not None:
        return ["full_attention" if n in whole else "conv" for n in range(number)]
    if config.get("model_type", "").startswith("gemma4"):
        # every sixth sees the whole text
        return [("full" if (n + 1) % 6 == 0 else "sliding") + "_attention" for n in range(number)]
    return None


def _numbers(config: Mapping[str, Any], kind: str) -> int:
    """Numbers of a token's keys and values in a layer."""
    heads = config["num_attention_heads"]
    if config.get("kv_lora_rank"):
        key = (config.get("qk_nope_head_dim") or 0) + (config.get("qk_rope_head_dim") or 0)
        return int(heads * (key + (config.get("v_head_dim") or key)))
    size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    if kind == "full_attention" and config.get("global_head_dim"):
        size = config["global_head_dim"]
        kv_heads = config.get("num_global_key_value_heads") or kv_heads
    return int(2 * kv_heads * size)
