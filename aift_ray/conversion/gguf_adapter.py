"""A LoRA adapter as a GGUF file of its own, which llama.cpp adds to its base when it loads it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, get_tensor_name_map

from aift_ray.conversion import gguf_file
from aift_ray.conversion.gguf_families import Family
from aift_ray.conversion.gguf_tensors import Source, Target, paired, plain
from aift_ray.errors import ModelError, Problem
from aift_ray.models import fingerprint
from aift_ray.models.lora.adapter_config import CONFIG
from aift_ray.models.lora.adapter_weights import WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# what a GGUF file of an adapter has no place for
_NOT_HELD = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "alpha_pattern",
    "target_parameters",
    "fan_in_fan_out",
)


def targets(adapter: Path, config: PreTrainedConfig, family: Family) -> list[Target]:
    """The tensors of the file.

    Args:
        config: of the language model.

    Raises:
        ModelError: the adapter has what such a file can't hold.
    """
    settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    held = [name for name in _NOT_HELD if settings.get(name)]
    if settings.get("use_rslora") and settings.get("rank_pattern"):
        held.append("rank_pattern")
    held += ["bias"] if settings.get("bias", "none") != "none" else []
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    found, strange = [], []
    for stored, entry in fingerprint.header(adapter / WEIGHTS)[1].items():
        match = _NAME.fullmatch(stored)
        own = plain(match[1]) if match else ""
        mapped = names.get_name(own) if match else None
        # of linear attention the heads are put in turn, which low ranks are not here
        if match is None or mapped is None or "linear_attn." in own:
            strange.append(stored)
            continue
        source = Source(adapter / WEIGHTS, stored, tuple(entry["shape"]))
        name = f"{mapped}.weight.lora_{match[2].lower()}"
        found.append(Target(name, (source,), _make(own, match[2], config, family)))
    if held or strange:
        what = f"its {held[0]}" if held else strange[0]
        what += " has no place in a GGUF file of an adapter"
        remedy = "leave --merge-adapter out, which merges it into the model"
        raise ModelError([Problem(f"adapter {adapter}", what, remedy)])
    return sorted(found, key=lambda target: target.name)


def _make(own: str, which: str, config: PreTrainedConfig, family: Family) -> Any:
    if which == "B" and family.permuted and own.endswith(("q_proj", "k_proj")):
        queries = own.endswith("q_proj")
        heads = config.num_attention_heads if queries else config.num_key_value_heads
        return lambda parts: paired(parts[0], heads)
    return lambda parts: parts[0]


def write(file: Path, name: str, adapter: Path, family: Family, found: list[Target]) -> None:
    """Write the file, in fp32 as adapters are trained.

    Raises:
        OSError: it could not be written.
    """
    settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    # llama.cpp divides by the rank, rsLoRA by its root
    alpha = float(settings["lora_alpha"])
    alpha *= math.sqrt(settings["r"]) if settings.get("use_rslora") else 1.0

    def describe(writer: GGUFWriter) -> None:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)

    kinds = {target.name: GGMLQuantizationType.F32 for target in found}
    gguf_file.write(file, family, describe, found, kinds)
