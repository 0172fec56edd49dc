"""What adapter_config.json of a folder says, where it is that of a LoRA adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aift_ray.errors import ModelError, Problem

CONFIG = "adapter_config.json"
# PEFT's tasks whose models have no output layer for tokens
_SCORING = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# what makes more of an adapter than low-rank matrices of a base's layers
_BEYOND = {
    "layer_replication": "its network has other layers than its base",
    "alora_invocation_tokens": "it acts on what follows certain tokens of a prompt alone",
}


def adapter_config(folder: Path, where: str) -> dict[str, Any]:
    """What adapter_config.json of a folder says; ModelError where it is none of a LoRA adapter."""
    file = folder / CONFIG
    if not file.is_file():
        what = f"{folder} holds no {CONFIG}" if folder.is_dir() else f"no such folder: {folder}"
        remedy = "give the folder that training or PEFT wrote, such as RUN/model"
        raise ModelError([Problem(where, what, remedy)])
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, where, error) from None
    if not isinstance(found, dict):
        what = f"{file} holds {type(found).__name__}, expected an object"
        raise ModelError([Problem(where, what, "copy it again")])
    if found.get("peft_type") != "LORA":
        what = f"{file} says that it is {found.get('peft_type')!r}, only 'LORA' is known"
        raise ModelError([Problem(where, what)])
    base = found.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and base.isprintable()):
        what = f"{file} has base_model_name_or_path = {base!r}, expected a name"
        raise ModelError([Problem(where, what, "write the name or the folder of its base")])
    if found.get("task_type") in _SCORING:
        what = f"{file} has task_type {found['task_type']}: it is the adapter of a reward model or "
        remedy = "give an adapter of a language model (task_type CAUSAL_LM)"
        raise ModelError([Problem(where, f"{what}classifier, no language model's", remedy)])
    beyond = [f"{file} has {name}: {what}" for name, what in _BEYOND.items() if found.get(name)]
    if beyond:
        raise ModelError([Problem(where, what, "use it with plain PEFT") for what in beyond])
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def damaged(file: Path, where: str, error: Exception) -> ModelError:
    """The error of a file that can't be read."""
    return ModelError([Problem(where, f"{file} is damaged: {error}", "copy it again")])
