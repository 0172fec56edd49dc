"""Rows of the embeddings that an adapter trains: how many its model needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from aift_ray.models import fingerprint
from aift_ray.models.lora.adapter_config import CONFIG
from aift_ray.models.lora.adapter_weights import WEIGHTS

_PREFIX = "base_model.model."


def needed_rows(folder: Path, model: PreTrainedModel) -> int:
    """The rows that embeddings must have for an adapter; 0: it says nothing of them.

    Args:
        model: the base, or its skeleton.
    """
    found: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    chosen = found.get("trainable_token_indices") or []
    lists = chosen.values() if isinstance(chosen, dict) else [chosen]
    numbers = [number + 1 for each in lists for number in each]
    if found.get("modules_to_save") and (folder / WEIGHTS).is_file():
        stored = fingerprint.header(folder / WEIGHTS)[1]
        names = [f"{_PREFIX}{name}.weight" for name in _full_names(model)]
        numbers += [stored[name]["shape"][0] for name in names if name in stored]
    return max(numbers, default=0)


def ends(model: PreTrainedModel) -> list[str]:
    """Last names of the embeddings and, where it is not one with them, of the output layer."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    names = [name.rpartition(".")[2] for name in _full_names(model)]
    return names[:1] if tied else names


def _full_names(model: PreTrainedModel) -> list[str]:
    """Names of the embeddings, and of the output layer."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(one)] for one in both if one is not None]
