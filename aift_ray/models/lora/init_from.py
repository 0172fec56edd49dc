"""A saved adapter as the start of a run: its settings are taken, and what contradicts them refused.

The adapter may be of this package, of PEFT or of what is built on PEFT, such as TRL.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from aift_ray.config import LoRAConfig, RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.added_tokens import embedding_rows
from aift_ray.models.bnb.experts_4bit import adaptable
from aift_ray.models.load import skeleton
from aift_ray.models.lora.adapter_config import adapter_config
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.lora.adapter_weights import WEIGHTS
from aift_ray.models.lora.attach import trained_in_fp32
from aift_ray.models.lora.embedding_rows import needed_rows

_FIELD = "lora.init_from"
# how PEFT may have begun so that base and adapter are what they are without it
_PLAIN_STARTS = (True, False, "gaussian", None)


def adopt(config: RunConfig, location: str) -> int | None:
    """Take the settings of the adapter that a run starts from; its number of weights.

    Args:
        config: gets rank, scale, layers and the rest; the dropout only where none is given.
        location: the resolved base.

    Returns:
        None: the run starts from no adapter.

    Raises:
        ModelError: no adapter, a damaged one, or one for another base.
        ConfigError: settings that are given and are not the adapter's.
    """
    lora = config.lora
    if lora.init_from is None or config.method == "full":
        return None
    named = Path(lora.init_from).expanduser()
    saved = adapter_config(named, _FIELD)
    if saved.get("init_lora_weights", True) not in _PLAIN_STARTS:
        what = f"began as {saved['init_lora_weights']}, which has changed its base too"
        remedy = "save it as ordinary LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        raise ConfigError([Problem(f"{_FIELD} {named}", what, remedy)])
    model = skeleton(location)
    folder = check_adapter(named, config.model, location, model, _FIELD)
    grown = needed_rows(folder, model) > embedding_rows(model)
    if saved.get("trainable_token_indices") or grown:
        what = "trains rows of the embeddings, which are not trained further"
        remedy = "merge it (aift-ray export --format hf) and train the merged model"
        raise ConfigError([Problem(f"{_FIELD} {named}", what, remedy)])
    sizes = _sizes(folder / WEIGHTS)
    found: dict[str, Any] = {
        "r": saved["r"],
        "lora_alpha": saved["lora_alpha"],
        "target_modules": _layers(sizes, saved.get("target_parameters") or ()),
        "lora_dropout": saved.get("lora_dropout", 0.0),
        "bias": saved.get("bias", "none"),
        "use_rslora": bool(saved.get("use_rslora")),
        "use_dora": bool(saved.get("use_dora")),
        "modules_to_save": saved.get("modules_to_save"),
        "experts": bool(saved.get("target_parameters")),
    }
    problems = []
    for name, value in found.items():
        own, was_given = getattr(lora, name), name in lora.model_fields_set
        if name == "lora_dropout" and was_given:
            continue
        if was_given and _unordered(own) != _unordered(value):
            what = f"{own} is not the adapter's {value}"
            problems.append(Problem(f"lora.{name}", what, "leave it out"))
        else:
            setattr(lora, name, value)
    if problems:
        raise ConfigError(problems)
    lora.init_from = str(folder)
    return sum(sizes.values())


def start_from(model: PreTrainedModel, config: LoRAConfig, folder: str) -> PeftModel:
    """Put a saved adapter on `model`, to be trained further with the dropout of `config`."""
    own: Any = PeftConfig.from_pretrained(folder)
    own.lora_dropout, own.inference_mode = config.lora_dropout, False
    with adaptable(model):
        adapted = PeftModel.from_pretrained(model, folder, config=own, is_trainable=True)
    return trained_in_fp32(adapted)


def _layers(names: Iterable[str], stacks: Iterable[str]) -> list[str] | None:
    """Last names of the layers that an adapter is on, but for the stacks of experts; None: none."""
    whole = tuple(f".{stack.rpartition('.')[0]}" for stack in stacks)
    found = (
        re.fullmatch(r"(.*?)(?:\.base_layer)*\.lora_(?:embedding_)?A(?:\.weight)?", n)
        for n in names
    )
    layers = {one[1] for one in found if one}
    return sorted({each.rsplit(".", 1)[-1] for each in layers if not each.endswith(whole)}) or None


def _sizes(file: Path) -> dict[str, int]:
    """Numbers of each trained tensor of an adapter's file, from its header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    # the tables that PEFT stores beside adapters on them are the base's
    return {
        name: prod(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and not name.endswith((".base_layer.weight", ".base_layer.bias"))
    }


def _unordered(value: object) -> Any:
    return sorted(value) if isinstance(value, list) else value
