"""Which families of models llama.cpp computes, and what a GGUF file says of each.

Sources: the tensor names and keys of the `gguf` package; llama.cpp's src/models and conversion/.
Every family here was computed by llama.cpp against transformers (`tests/conversion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, RopeScalingType

from aift_ray.conversion import gguf_linear

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """How the weights of a family are written.

    Attributes:
        arch: as llama.cpp calls it.
        permuted: rows of q and k go in pairs, as llama.cpp rotates them in this architecture.
        norm_offset: what is added to the weights of norms.
        activations: those that llama.cpp computes for it.
        full_every: one layer in so many attends to everything, the others to a window; 0: all do.
        linear: three layers in four have linear attention, and a part of each head is rotated.
        scaled: the attention's scale is head_dim ** -0.5 whatever the configuration says.
    """

    arch: MODEL_ARCH
    permuted: bool = False
    norm_offset: float = 0.0
    activations: tuple[str, ...] = ("silu",)
    full_every: int = 0
    scaled: bool = False
    linear: bool = False

    @property
    def name(self) -> str:
        """The architecture in a file."""
        return str(MODEL_ARCH_NAMES[self.arch])


_GELU = ("gelu_pytorch_tanh", "gelu")
FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Family(MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "qwen3_moe": Family(MODEL_ARCH.QWEN3MOE),
    "qwen3_5_text": Family(MODEL_ARCH.QWEN35, norm_offset=1.0, linear=True),
    "gemma": Family(MODEL_ARCH.GEMMA, norm_offset=1.0, activations=_GELU),
    "gemma2": Family(
        MODEL_ARCH.GEMMA2, norm_offset=1.0, activations=_GELU, full_every=2, scaled=True
    ),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3, norm_offset=1.0, activations=_GELU, full_every=6, scaled=True
    ),
}
# numbers of layers whose scale llama.cpp takes from hidden size and heads
_BY_HEADS = {"gemma2": 46, "gemma3_text": 62}
# the base of rotations within a window, which llama.cpp does not read
_WINDOW_BASE = 10000.0
# how Qwen 3.5 divides rotations between time, height and width, where it does not say so
_SECTIONS = (11, 11, 10)


def family(config: PreTrainedConfig) -> Family | str:
    """The family of a language model's configuration, or why there is none."""
    kind = config.model_type
    found = FAMILIES.get(kind)
    wrong = _beyond(config, found) if found else ""
    if found and not wrong:
        return found
    known = ", ".join(sorted(FAMILIES))
    what = wrong and f"llama.cpp computes it otherwise: {wrong}"
    return what or f"it can't be written as GGUF: of {known} can"


def _beyond(config: PreTrainedConfig, found: Family) -> str:
    """What of a configuration llama.cpp does not compute; empty: nothing."""
    act = getattr(config, "hidden_activation", None) or config.hidden_act
    rotary = _full_rotary(config).get("rope_type", "default")
    heads = config.hidden_size // config.num_attention_heads
    scale = getattr(config, "query_pre_attn_scalar", None)
    by_heads = _BY_HEADS.get(config.model_type) == config.num_hidden_layers
    wrong = {
        f"hidden_act is {act}": act not in found.activations,
        "only a part of a head is rotated": _partial(config) != 1.0 and not found.linear,
        "yarn has settings of its own": rotary == "yarn" and bool(_own_yarn(_full_rotary(config))),
        f"rope_type is {rotary}": rotary not in ("default", "linear", "llama3", "yarn"),
        f"query_pre_attn_scalar is {scale}": found.scaled
        and scale != (heads if by_heads else config.head_dim),
        "attn_logit_softcapping is set": config.model_type == "gemma3_text"
        and bool(getattr(config, "attn_logit_softcapping", None)),
        "use_bidirectional_attention is set": bool(
            getattr(config, "use_bidirectional_attention", False)
        ),
        "norm_topk_prob is off": not getattr(config, "norm_topk_prob", True),
        "some of its layers have no experts": bool(getattr(config, "mlp_only_layers", None))
        or getattr(config, "decoder_sparse_step", 1) != 1,
    }
    if found.linear:
        full = gguf_linear.FULL_EVERY
        kinds = [
            "linear_attention" if (at + 1) % full else "full_attention"
            for at in range(config.num_hidden_layers)
        ]
        wrong["layer_types is another pattern"] = list(config.layer_types) != kinds
    if found.full_every:
        kinds = [
            "sliding_attention" if (at + 1) % found.full_every else "full_attention"
            for at in range(config.num_hidden_layers)
        ]
        wrong["layer_types is another pattern"] = list(config.layer_types) != kinds
        window = _rotary(config).get("sliding_attention", {})
        base = window.get("rope_theta", _WINDOW_BASE)
        wrong[f"the rope_theta of its windows is {base:g}"] = base != _WINDOW_BASE
    return next((what for what, found_wrong in wrong.items() if found_wrong), "")


def _rotary(config: object) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _full_rotary(config: object) -> dict[str, Any]:
    found: dict[str, Any] = _rotary(config).get("full_attention") or _rotary(config)
    return found


def _partial(config: object) -> float:
    found = _full_rotary(config).get("partial_rotary_factor")
    return float(found or getattr(config, "partial_rotary_factor", None) or 1.0)


def _own_yarn(rotary: dict[str, Any]) -> list[str]:
    """Settings of yarn that are not those llama.cpp starts from."""
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    named = ("attention_factor", "mscale", "mscale_all_dim")
    found = [name for name in named if rotary.get(name) is not None]
    return found + [name for name, value in usual.items() if rotary.get(name, value) != value]


def head_size(config: PreTrainedConfig) -> int:
    """Width of an attention head."""
    found = getattr(config, "head_dim", None)
    return int(found or config.hidden_size // config.num_attention_heads)


def context(config: PreTrainedConfig, found: Family) -> int:
    """Tokens up to which llama.cpp computes the same: of windows it knows some families' only."""
    own, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    return int(own if found.full_every or not window else min(own, window))


def write(writer: GGUFWriter, config: PreTrainedConfig, found: Family) -> None:
    """Add what a file says of a model's numbers."""
    head = head_size(config)
    writer.add_context_length(context(config, found))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(int(head * _partial(config)))
    if found.full_every:
        writer.add_sliding_window(config.sliding_window)
    for key, put in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, key, None):
            put(getattr(config, key))
    if found.arch == MODEL_ARCH.QWEN3MOE:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if found.linear:
        sections = _rotary(config).get("mrope_section", _SECTIONS)
        gguf_linear.write(writer, config, sections)
    _write_rotary(writer, _full_rotary(config), config.max_position_embeddings)


def _write_rotary(writer: GGUFWriter, rotary: dict[str, Any], context: int) -> None:
    writer.add_rope_freq_base(rotary.get("rope_theta", 10000.0))
    kind = rotary.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rotary["factor"])
        writer.add_rope_scaling_orig_ctx_len(
            rotary.get("original_max_position_embeddings", context)
        )
