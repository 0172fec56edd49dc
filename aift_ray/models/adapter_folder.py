"""A saved LoRA adapter: which base it was made for, and every way its folder can be wrong."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG
from aift_ray.models.linear import features

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def check_adapter(name: str, base: str, location: str, skeleton: PreTrainedModel) -> Path:
    """The adapter's folder, where it is whole and fits the model.

    Args:
        name: the folder as the user named it.
        base: the model as the user named it.
        location: that model, resolved.
        skeleton: the same without weights.

    Raises:
        ModelError: no adapter, a damaged one, or one for another base, which is named.
    """
    folder, where = Path(name).expanduser(), f"adapter {name}"
    config, shapes = _config(folder, where), _shapes(folder, where)
    wanted = str(config.get("base_model_name_or_path") or "")
    problems = _wrong_ranks(config, shapes, where)
    if not problems and wanted and not _same_base(wanted, location):
        what = f"it was made for another base: {wanted}, not {base}"
        remedy = f"give --model {wanted}, or, if {base} is the same model in another place, say so "
        remedy += f"as base_model_name_or_path in {folder / CONFIG}"
        problems = [Problem(where, what, remedy)]
    if not problems:
        problems = _misfits(shapes, skeleton, where, wanted, base)
    if problems:
        raise ModelError(problems)
    return folder.resolve()


def _config(folder: Path, where: str) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        what = "no such folder" if not folder.is_dir() else f"the folder has no {CONFIG}"
        raise ModelError([Problem(where, what, "give the folder that training or PEFT wrote")])
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError([Problem(where, f"{CONFIG} is damaged: {error}")]) from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError([Problem(where, f"its kind is {kind!r}, expected 'LORA'")])
    found: dict[str, Any] = config
    return found


def _shapes(folder: Path, where: str) -> dict[str, list[int]]:
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = " (adapter_model.bin is a pickle, which can run code when opened)"
        what = f"the folder has no {WEIGHTS}"
        what += pickled if (folder / "adapter_model.bin").is_file() else ""
        raise ModelError([Problem(where, what)])
    try:
        with safe_open(file, "np") as opened:
            return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        problem = Problem(where, f"{WEIGHTS} is damaged: {error}", "copy it anew")
        raise ModelError([problem]) from None


def _wrong_ranks(config: dict[str, Any], shapes: dict[str, list[int]], where: str) -> list[Problem]:
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        return [Problem(where, f"{CONFIG} has rank r = {rank!r}, expected 1 or more")]
    stored = {shape[0] for key, shape in shapes.items() if key.endswith("lora_A.weight")}
    if not stored:
        return [Problem(where, f"{WEIGHTS} holds no LoRA weights")]
    # with a pattern each layer may have a rank of its own
    if config.get("rank_pattern") or stored == {rank}:
        return []
    ranks = ", ".join(map(str, sorted(stored)))
    return [Problem(where, f"{CONFIG} has rank r = {rank}, its weights have {ranks}")]


def _same_base(wanted: str, location: str) -> bool:
    """Whether two names stand for one model, wherever its folder was moved to."""
    recorded = Path(CATALOG[wanted].location if wanted in CATALOG else wanted).expanduser()
    given = Path(location)
    if not recorded.is_dir() or not given.is_dir():
        return recorded.name == given.name
    if recorded.resolve() == given.resolve():
        return True
    files = sorted(file.name for file in recorded.glob("*.safetensors"))
    if files != sorted(file.name for file in given.glob("*.safetensors")):
        return False
    return all(filecmp.cmp(recorded / file, given / file, shallow=False) for file in files)


def _misfits(
    shapes: dict[str, list[int]], skeleton: PreTrainedModel, where: str, wanted: str, base: str
) -> list[Problem]:
    """Adapted layers that the model lacks or has in another size."""
    modules: dict[str, Any] = dict(skeleton.named_modules())
    found = []
    for key, shape in shapes.items():
        layer, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            continue
        sizes = features(modules[layer]) if layer in modules else None
        if sizes is None:
            found.append(f"{layer}, which {base} does not have")
        elif shape[1 if part[0] == "A" else 0] != sizes[0 if part[0] == "A" else 1]:
            found.append(f"{layer} in another size")
    if not found:
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    what = f"it was made for another base ({wanted or 'not named'}): it adapts {found[0]}{more}"
    return [Problem(where, what, f"give --model {wanted}" if wanted else "")]
