"""How each family of models is computed: which attention, and how rows are laid out.

`tables/families.csv` holds what `make families` has measured for every architecture that
transformers knows. A family that is not in it is measured before a run starts (`models/probe.py`).
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

TABLE = Path(__file__).parents[1] / "tables" / "families.csv"

Attention = Literal["documents", "eager"]
# what a configuration may ask for, whatever its class has: families are measured with all of it
FEATURES: dict[str, Any] = {
    "sliding_window": 512,
    "use_sliding_window": True,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 5.0,
    "logits_scaling": 8.0,
    "logit_scale": 0.25,
    "lm_head_multiplier": 0.5,
    "router_jitter_noise": 0.3,
    "is_decoder": True,
    "num_kv_shared_layers": 1,
}
# with these off a layer does less of what was measured
_MEASURED_BOTH_WAYS = ("use_sliding_window",)
# what changes no layer's attention, state or logits
_WITHOUT_EFFECT = frozenset(
    {
        "attention_bias",
        "attention_k_eq_v",
        "block_auto_adjust_ff_dim",
        "dtype",
        "enable_moe_block",
        "hidden_act",
        "hidden_activation",
        "is_encoder_decoder",
        "mlp_bias",
        "model_type",
        "norm_topk_prob",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "return_dict",
        "tie_word_embeddings",
        "transformers_version",
        "use_cache",
        "use_double_wide_mlp",
    }
)
# of these a class may leave out what every published model has: sizes, ids, shares
_SIZES = re.compile(r"_(id|dim|size|heads|rank|group|theta)$|drop|expert|_loss_|rotary")
# numbers by which routers of experts are changed at random in training
NOISE = "router_jitter_noise"


@dataclass(frozen=True)
class Support:
    """What a family was seen to compute as transformers' eager forward of each text alone does.

    Attributes:
        attention: what transformers is asked for; `documents` is
            `models/attention/document_attention.py`.
        packed: documents may lie end to end in one row; else rows are padded.
        batched: prompts of uneven length may be answered in one batch.
        qlora: the linear layers may be held in 4 bits.
    """

    attention: Attention
    packed: bool
    batched: bool
    qlora: bool = True

    def pads(self, packing: str) -> bool:
        """Whether rows are padded, with a setting of `data.packing`."""
        return packing == "false" or not self.packed


@dataclass(frozen=True)
class Refusal:
    """Why a family is not trained.

    Attributes:
        computed: whether a tiny model of it was computed, and differs.
        layout: what would work, as it is typed; None: nothing is known to.
    """

    why: str
    computed: bool = True
    layout: str | None = None


def family_of(config: PreTrainedConfig) -> str:
    """The model type of what is computed of a configuration: mostly that of its language model.

    Of a wrapper that AutoModelForCausalLM does not know it is the wrapper's, whose class is taken.
    """
    text = config.get_text_config(decoder=True)
    if text is not config:
        # slow to import, and of no use to others
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return str(config.model_type)
    return str(text.model_type)


def without_noise(model: nn.Module) -> None:
    """Let the routers of a model that is trained add no random numbers."""
    for module in model.modules():
        for name in (NOISE, "jitter_noise"):
            if hasattr(module, name):
                setattr(module, name, 0.0)


def not_applied(config: PreTrainedConfig) -> list[str]:
    """What of a model's configuration has no effect in training, in words."""
    noise = getattr(config.get_text_config(decoder=True), NOISE, None)
    if not noise:
        return []
    return [
        f"the model's {NOISE} {noise:g} is not applied: the same rows would not make the same step"
    ]


def attention_of(config: PreTrainedConfig) -> Attention:
    """The attention that a family is computed with, where it is only asked; eager if unknown."""
    found = known(config)
    return found.attention if isinstance(found, Support) else "eager"


def layer_kinds(config: PreTrainedConfig) -> frozenset[str]:
    """The kinds of layers of a model that has several, as its configuration names them."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    return frozenset(map(str, kinds))


def known(config: PreTrainedConfig) -> Support | Refusal | None:
    """What was measured of a model's family; None: nothing, or of other kinds of layers."""
    row, text = table().get(family_of(config)), config.get_text_config(decoder=True)
    if row is None:
        return None
    measured, found = row
    if asks_more(text) or (text is not config and not _is_usual(config, text)):
        return None
    kinds = layer_kinds(config)
    # without any attention a model keeps nothing by token
    if kinds - measured or (kinds and attends(measured) and not attends(kinds)):
        return None
    return found


def asks_more(text: PreTrainedConfig) -> list[str]:
    """What a configuration turns on or chooses, and the measured one of its family did not."""
    usual = type(text)().to_dict() | FEATURES
    return sorted(
        name
        for name, value in text.to_dict().items()
        if name not in _WITHOUT_EFFECT
        and not name.startswith("_")
        and (_chosen(name, value, usual.get(name)) or _turned_on(name, value, usual.get(name)))
    )


def _chosen(name: str, value: object, usual: object) -> bool:
    return isinstance(value, bool | str) and value not in (
        usual,
        False if name in _MEASURED_BOTH_WAYS else None,
    )


def _turned_on(name: str, value: object, usual: object) -> bool:
    """Whether a number is given of what the measured configuration has none of."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and bool(value) and not usual and not _SIZES.search(name)


def _is_usual(config: PreTrainedConfig, text: PreTrainedConfig) -> bool:
    """Whether a wrapper holds the language model that its family was measured with."""
    if family_of(config) == text.model_type:
        return True
    usual: Any = type(config)().get_text_config(decoder=True)
    return bool(usual.model_type == text.model_type)


def attends(kinds: frozenset[str]) -> bool:
    """Whether some kind of layer is attention with keys and values of every token."""
    return any("attention" in kind and not kind.startswith("linear") for kind in kinds)


@cache
def table() -> dict[str, tuple[frozenset[str], Support | Refusal]]:
    """The kinds of layers that were measured, and what was seen, by model type."""
    found: dict[str, tuple[frozenset[str], Support | Refusal]] = {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            seen: Support | Refusal = Refusal(row["refused"])
            if not row["refused"]:
                attention: Any = row["attention"]
                packed, batched, qlora = (row[n] == "yes" for n in ("packed", "batched", "qlora"))
                seen = Support(attention, packed, batched, qlora)
            found[row["model_type"]] = frozenset(row["kinds"].split()), seen
    return found
