"""From a model's name to its folder or Hub id, without the libraries that would open it."""

from __future__ import annotations

import json
from pathlib import Path

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG, is_hub_id, unknown
from aift_ray.models.folder_check import check
from aift_ray.models.lora.adapter_config import CONFIG, adapter_config


def resolve(name: str) -> str:
    """The folder, or the Hub id, that `name` stands for.

    Raises:
        ModelError: no such folder or catalog name and no Hub id either; or a folder that lacks
            its config, its tokenizer or safetensors weights.
    """
    location = CATALOG[name].location if name in CATALOG else name
    folder = Path(location).expanduser()
    if folder.is_dir():
        # which task it is for is judged with its configuration
        problems = check(name, folder, scorer=True)
        if problems:
            raise ModelError(problems)
        return str(folder.resolve())
    if name in CATALOG and not is_hub_id(location):
        raise ModelError([Problem(name, f"its folder {location} is missing", "reinstall aift-ray")])
    if not is_hub_id(location):
        raise ModelError([unknown(name)])
    return location


def stop_ids(location: str) -> list[int]:
    """End-of-turn ids that generation_config.json names; empty for a Hub id not on disk."""
    file = Path(location) / "generation_config.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    return [found] if isinstance(found, int) else list(found or [])


def base_of_adapter(name: str, folder: Path) -> tuple[str, str]:
    """The base that an adapter names, and its location.

    Args:
        name: of the adapter, as messages call it.

    Raises:
        ModelError: it names none, or the base can't be used.
    """
    where = f"adapter {name}"
    base = adapter_config(folder, where).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        what = "it names no base model (base_model_name_or_path)"
        raise ModelError([Problem(where, what, f"write it into {folder / CONFIG}")])
    base = named_base(base)
    try:
        location = resolve(base)
    except ModelError as error:
        what = f"it was made for the base model {base}, which can't be used"
        remedy = f"bring the base back, or write where it is by now into {folder / CONFIG}"
        raise ModelError([Problem(where, what, remedy), *error.problems]) from None
    return base, location


def named_base(name: str) -> str:
    """The folder or Hub id that an adapter's base_model_name_or_path stands for."""
    folder = Path(name).expanduser()
    # a shipped model is found again wherever the package is installed by now
    known = folder.name if folder.is_absolute() and not folder.is_dir() else name
    if known in CATALOG:
        name = CATALOG[known].location
        folder = Path(name)
    return str(folder.resolve()) if folder.is_dir() else name
