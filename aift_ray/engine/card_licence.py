"""What the head of a model card says of the base's licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aift_ray.models.catalog import CATALOG, Entry, find
from aift_ray.models.fingerprint import on_disk

_CARD = "README.md"
# the Hub's identifiers of the catalog's licences; others are "other" with a name
_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Gemma": "gemma",
    "Llama 2": "llama2",
    "Llama 3": "llama3",
    "Llama 3.2": "llama3.2",
    "Llama 3.3": "llama3.3",
    "CC-BY-NC-SA": "cc-by-nc-sa-4.0",
}
_KEYS = ("license", "license_name", "license_link")


def licence(location: str) -> dict[str, str]:
    """What a card's head says of the base's licence, by its own card, or else by the catalog."""
    folder = on_disk(location)
    own = _head(folder / _CARD) if folder else {}
    if isinstance(own.get("license"), str):
        return {key: str(own[key]) for key in _KEYS if own.get(key)}
    entry = find(location) or next((e for e in CATALOG.values() if _same(e, location)), None)
    if entry is None:
        return {}
    known = _LICENCES.get(entry.licence)
    if known:
        return {"license": known}
    named = entry.licence.lower().replace(" ", "-")
    link = {"license_link": f"https://huggingface.co/{entry.location}"}
    return {
        "license": "other",
        "license_name": named,
        **({} if _is_folder(entry.location) else link),
    }


def _same(entry: Entry, location: str) -> bool:
    return _is_folder(entry.location) and Path(entry.location).resolve() == Path(location)


def _is_folder(location: str) -> bool:
    return Path(location).is_absolute()


def _head(file: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty where there is none."""
    try:
        text = file.read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
