"""An adapter as every replica of a server has to have it: its folder, and what it holds."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter when it was first loaded.

    Attributes:
        digest: of what its files held.
    """

    folder: str
    digest: str


def record(folder: str) -> AdapterRecord:
    """The adapter of a folder as it is now; OSError where a file can't be read."""
    path = Path(folder).expanduser().absolute()
    return AdapterRecord(str(path), digest(path))


def digest(folder: Path) -> str:
    """Of what an adapter's files hold; equal adapters have equal ones."""
    found = hashlib.sha256()
    for file in FILES:
        found.update(hashlib.sha256((folder / file).read_bytes()).digest())
    return found.hexdigest()[:32]


def same_name(name: str) -> str:
    """A name in the form in which names are compared: は with its mark apart is ば."""
    return unicodedata.normalize("NFC", name)
