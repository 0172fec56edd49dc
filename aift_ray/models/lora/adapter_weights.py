"""The weights of a LoRA adapter as its file holds them: their shapes, and how they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aift_ray.errors import ModelError, Problem
from aift_ray.models.lora.adapter_config import CONFIG, damaged

WEIGHTS = "adapter_model.safetensors"
Shapes = dict[str, tuple[int, ...]]
# what the weights of an adapter are stored in
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def stored_shapes(folder: Path, where: str) -> Shapes:
    """The shapes of the stored weights, all of them finite."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = " (adapter_model.bin is a pickle, which can run code when opened)"
        what = f"{folder} holds no {WEIGHTS}"
        what += pickled if (folder / "adapter_model.bin").is_file() else ""
        raise ModelError([Problem(where, what, "copy the whole folder again")])
    found, infinite, others = {}, [], []
    try:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(key)
                found[key] = tuple(tensor.shape)
                if tensor.dtype not in _DTYPES:
                    others.append(f"{key} in {str(tensor.dtype).removeprefix('torch.')}")
                elif not torch.isfinite(tensor).all():
                    infinite.append(key)
    except (SafetensorError, OSError) as error:
        raise damaged(file, where, error) from None
    if others:
        what = (
            f"{file} holds {first_of(others)}, expected floating-point numbers of 16 bits or more"
        )
        raise ModelError([Problem(where, what, "save the adapter again with PEFT")])
    if infinite:
        what = f"{file} holds infinite or NaN weights: {first_of(infinite)}"
        raise ModelError([Problem(where, what, "take an earlier checkpoint of the run")])
    return found


def wrong_ranks(config: dict[str, Any], stored: Shapes, folder: Path, where: str) -> list[Problem]:
    """A rank in adapter_config.json that is not that of the weights, or no scale at all."""
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        return [Problem(where, f"{folder / CONFIG} has rank r = {rank!r}, expected 1 or more")]
    alpha = config.get("lora_alpha")
    if isinstance(alpha, int | float) and not abs(alpha) <= torch.finfo(torch.float32).max:
        return [Problem(where, f"{folder / CONFIG} has lora_alpha = {alpha}: no 32-bit number")]
    ranks = {shape[0] for key, shape in stored.items() if ".lora_A." in key and shape}
    ranks |= {shape[0] for key, shape in stored.items() if key.endswith("lora_embedding_A")}
    if not ranks:
        return [Problem(where, f"{folder / WEIGHTS} holds no LoRA weights", "copy it again")]
    # with a pattern each layer may have a rank of its own
    if config.get("rank_pattern") or config.get("target_parameters") or ranks == {rank}:
        return []
    has = ", ".join(map(str, sorted(ranks)))
    what = f"{folder / CONFIG} has rank r = {rank}, its weights have {has}"
    return [Problem(where, what, "copy it again")]


def first_of(names: list[str]) -> str:
    """The first of several, and how many more."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
