"""From a model's name to its folder or Hub id, without the libraries that would open it."""

from __future__ import annotations

from pathlib import Path

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG, is_hub_id, unknown
from aift_ray.models.folder_check import check


def resolve(name: str) -> str:
    """The folder, or the Hub id, that `name` stands for.

    Raises:
        ModelError: no such folder or catalog name and no Hub id either; or a folder that lacks
            its config, its tokenizer or safetensors weights.
    """
    location = CATALOG[name].location if name in CATALOG else name
    folder = Path(location).expanduser()
    if folder.is_dir():
        problems = check(name, folder)
        if problems:
            raise ModelError(problems)
        return str(folder.resolve())
    if name in CATALOG and not is_hub_id(location):
        raise ModelError([Problem(name, f"its folder {location} is missing", "reinstall aift-ray")])
    if not is_hub_id(location):
        raise ModelError([unknown(name)])
    return location
