"""A tiny model of the architecture of another: its own configuration, with small sizes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from aift_ray.models.attention.document_attention import register
from aift_ray.models.families.family_support import NOISE, without_noise
from aift_ray.models.load import built, of_language_model
from aift_ray.models.wrappers import is_wrapper, materialized, taken_out

_HIDDEN, _HEADS, _HEAD, _LAYERS = 64, 4, 16, 4
VOCABULARY = 320
# a window or chunk that documents of a few tokens are longer than
_WINDOW = 8
# how many layers a pattern that repeats after some of them may take
_MOST_LAYERS = 12

_SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "n_vocab", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "dim"), _HIDDEN),
    **dict.fromkeys(("word_embed_proj_dim", "embed_dim", "lru_width", "d_embed"), _HIDDEN),
    "embedding_dim": _HIDDEN,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_inner"), 96),
    **dict.fromkeys(("feed_forward_size", "d_ff", "ff_dim", "intermediate_size_mlp", "dff"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dim_ff"), 96),
    **dict.fromkeys(("block_ff_dim", "dense_intermediate_size", "inner_dim"), 96),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("head_dim", "v_head_dim", "global_head_dim", "attention_head_dim"), _HEAD),
    **dict.fromkeys(("kv_channels", "d_kv", "d_head", "dim_head", "swa_head_dim"), _HEAD),
    **dict.fromkeys(("hidden_size_per_layer_input", "index_head_dim"), _HEAD),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("max_seq_length", "max_sequence_length", "seq_length"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(
        ("expert_ffn_hidden_size", "moe_ffn_hidden_size", "shared_intermediate_size"), 32
    ),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_k", "moe_top_k", "num_selected_experts", "top_k_experts"), 2),
    "zero_expert_num": 2,
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts"), 1),
    **dict.fromkeys(("num_shared_experts", "first_k_dense_replace", "moe_layer_start_index"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "num_dense_layers", "n_dense_layers"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "index_topk"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "d_state"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_mamba_heads"), 1),
    **dict.fromkeys(
        ("mamba_chunk_size", "chunk_size", "mamba_chunk", "mamba2_chunk_size"), _WINDOW
    ),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "sliding_window_size"), _WINDOW),
    **dict.fromkeys(("attention_window_size", "local_attention_window", "window_size"), _WINDOW),
}
_HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYER_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    "num_blocks",
)
# numbers after which a pattern of layers repeats
_PERIODS = [
    "attn_layer_period",
    "expert_layer_period",
    "full_attention_interval",
    "interleave_moe_layer_step",
    "global_attn_every_n_layers",
    "attn_layer_offset",
    "layer_group_size",
    "sliding_window_pattern",
]
# of these heads as many groups as the model has, by kind: one, several, or one for each
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_global_key_value_heads")


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a tiny model with all kinds of layers that `config` has.

    Windows and chunks are shorter than a document of ten tokens, and nothing is dropped at random.
    Of a wrapper whose own class computes the language model the wrapper stays.

    Raises:
        ValueError: the configuration of a wrapper's language model lies deeper than in it.
    """
    text = config.get_text_config(decoder=True)
    small = _shrunk_text(text)
    if text is config or not is_wrapper(config):
        return small
    if taken_out(config) and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return small
    named = [name for name in config.sub_configs if getattr(config, name, None) is text]
    if not named:
        raise ValueError("it holds its language model deeper than others")
    whole = copy.deepcopy(config)
    for name in named:
        setattr(whole, name, small)
    whole.dtype = torch.float32
    if hasattr(whole, "quantization_config"):
        del whole.quantization_config
    return whole


def _shrunk_text(config: PreTrainedConfig) -> PreTrainedConfig:
    text = copy.deepcopy(config)
    given = text.to_dict()
    total = next((given[name] for name in _LAYER_COUNTS if _is_number(given.get(name))), 0)
    layers = min(_layers(given), total or _MOST_LAYERS)
    sizes: dict[str, Any] = {
        name: size for name, size in _SIZES.items() if _is_number(given.get(name))
    }
    heads = next((given[name] for name in _HEAD_COUNTS if _is_number(given.get(name))), 0)
    sizes |= _groups(given, heads)
    if _is_number(given.get("num_kv_shared_layers")):
        # those before them must be of every kind too
        sizes["num_kv_shared_layers"], layers = layers, 2 * layers
    if "qk_rope_head_dim" in sizes and "head_dim" in sizes:
        sizes["head_dim"] = sizes["qk_rope_head_dim"]
    if "expand" in given and "num_heads" in sizes:
        sizes["head_dim"] = _HIDDEN * given["expand"] // _HEADS
    sizes |= _products(given, sizes)
    sizes |= {name: layers for name in _LAYER_COUNTS if _is_number(given.get(name))}
    if _is_number(given.get("num_layers_per_stack")):
        # HRM goes through the layers of its stacks several times, and counts each time
        times = total // given["num_layers_per_stack"]
        sizes |= {name: times for name in _LAYER_COUNTS if name in sizes}
        sizes["num_layers_per_stack"] = 1
    for name, value in given.items():
        letters = isinstance(value, str) and "pattern" in name
        if (letters or isinstance(value, list)) and len(value) == total > layers:
            sizes[name] = value[:layers]
        elif isinstance(value, float) and "drop" in name:
            sizes[name] = 0.0
        if name.endswith(("_indices", "_idxs", "_layer_ids")) and isinstance(value, list) and value:
            sizes[name] = [number for number in value if number < layers] or [layers - 1]
        if isinstance(value, list) and name in _SIZES:
            sizes[name] = [_SIZES[name]] * layers
    each = given.get("per_layer_config") or {}
    if each:
        sizes["per_layer_config"] = {
            number: {name: _SIZES.get(name, value) for name, value in one.items()}
            | _groups(one, one.get("num_attention_heads", heads))
            for number, one in each.items()
            if int(number) < layers
        }
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1, "decoder_start_token_id": 2}
    sizes |= {name: id_ for name, id_ in ids.items() if given.get(name) is not None}
    if given.get(NOISE):
        # large enough to be seen where it changes more than training
        sizes[NOISE] = 0.3
    sizes |= _rope(given, sizes) | {"use_cache": True, "dtype": "float32"}
    kept = {k: v for k, v in given.items() if k not in ("architectures", "quantization_config")}
    return type(text).from_dict(kept | sizes)


def _groups(given: dict[str, Any], heads: int) -> dict[str, int]:
    """How many heads of keys and values a tiny layer has instead of those `given`."""
    found = {name: given[name] for name in _KV_HEADS if _is_number(given.get(name))}
    return {
        name: 1 if groups == 1 else _HEADS if groups == heads else _HEADS // 2
        for name, groups in found.items()
    }


def _products(given: dict[str, Any], sizes: dict[str, int]) -> dict[str, int]:
    """Sizes that follow from others."""
    found = {}
    if _is_number(given.get("attention_hidden_size")):
        wide = _HIDDEN * given["attention_hidden_size"] // given["hidden_size"]
        found = {"attention_hidden_size": wide}
        if "attention_head_dim" in given:
            found["attention_head_dim"] = wide // _HEADS
    if _is_number(given.get("mamba_headdim")):
        found["mamba_headdim"] = _HIDDEN * given["mamba_expand"] // sizes["n_mamba_heads"]
    if _is_number(given.get("qk_head_dim")):
        found["qk_head_dim"] = sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"]
    if given.get("num_experts_per_tok") == 1:
        # some routers know no other number
        found["num_experts_per_tok"] = 1
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _layers(given: dict[str, Any]) -> int:
    """How many of the first layers are of every kind."""
    kinds = given.get("layer_types") or given.get("layers_block_type")
    mlps = given.get("mlp_layer_types")
    needed = _LAYERS
    for pattern in (kinds, mlps, given.get("hybrid_override_pattern")):
        if pattern:
            needed = max(needed, *(list(pattern).index(kind) + 1 for kind in set(pattern)))
    if kinds and {"linear_attention", "hybrid"} <= set(kinds):
        # Zamba ties the attention of all hybrid layers, and fails to with a single one
        hybrid = [place for place, kind in enumerate(kinds) if kind == "hybrid"]
        needed = max([needed, *(n + 1 for n in hybrid[:2] if n < _MOST_LAYERS)])
    if not kinds:
        periods = [given[name] for name in _PERIODS if _is_number(given.get(name))]
        needed = max([needed, *(n + 1 for n in periods if n < _MOST_LAYERS)])
    return min(needed, _MOST_LAYERS)


def _rope(given: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings whose lists have as many numbers as a tiny head takes."""
    rope = given.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}

    def fitted(one: dict[str, Any]) -> dict[str, Any]:
        share = one.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1.0
        half = int(sizes.get("head_dim", _HEAD) * share) // 2
        cut = {k: v[:half] for k, v in one.items() if isinstance(v, list)}
        if "mrope_section" in one:
            cut["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
        return one | cut

    nested = all(isinstance(value, dict) for value in rope.values())
    made = {k: fitted(v) for k, v in rope.items()} if nested else fitted(rope)
    return {"rope_parameters": made}


def _built(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    asked: Any = of_language_model(config, attention)
    options: dict[str, Any] = {"attn_implementation": asked, "dtype": torch.float32}
    if not is_wrapper(config) or torch.get_default_device().type == "meta":
        return built(config, **options)
    # towers are large, and never there
    with torch.device("meta"):
        model = built(config, **options)
    return materialized(model)


def random_model(config: PreTrainedConfig, attention: str, scale: float = 3.0) -> PreTrainedModel:
    """A model with random weights, the same whatever attention it is asked to compute.

    As in a run, its routers get no random numbers, but for `eager`.

    Args:
        scale: of the matrices; enlarged, so that attention is far from uniform.
    """
    register()
    config = copy.deepcopy(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _built(config, attention)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.mul_(scale)
                if "sink" in name:
                    weight.normal_(0, 2)
                elif (
                    "bias" in name and weight.ndim == 1 and not weight.is_meta and not weight.any()
                ):
                    weight.normal_(0, 0.1)
    if attention != "eager":
        without_noise(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """What libraries say of a tiny model is of no use to anybody."""
    level, threads = logging.get_verbosity(), torch.get_num_threads()
    shows_progress = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()
        torch.set_num_threads(threads)
