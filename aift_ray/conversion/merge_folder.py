"""Several model folders to one, one tensor of each in memory at a time.

The result has the files of the base, or of the first model: same names, shards and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from aift_ray.errors import ModelError, Problem
from aift_ray.models import fingerprint
from aift_ray.models.safetensors_layout import DTYPES, content

_SHOWN = 3

Merge = Callable[[str, Sequence[torch.Tensor], torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder.

    Attributes:
        name: the model as the user named it.
        files: {tensor: its file}.
        entries: {tensor: its entry in the file's header}.
    """

    name: str
    files: dict[str, Path]
    entries: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, name: str, folder: Path) -> Weights:
        """Read the headers of a folder's files."""
        files: dict[str, Path] = {}
        entries: dict[str, dict[str, Any]] = {}
        for file in fingerprint.weight_files(folder):
            held = fingerprint.header(file)[1]
            files |= dict.fromkeys(held, file)
            entries |= held
        return cls(name, files, entries)

    def read(self, tensor: str) -> torch.Tensor:
        """Values of a tensor."""
        with safe_open(self.files[tensor], "pt") as opened:
            found: torch.Tensor = opened.get_tensor(tensor)
        return found


def differences(first: Weights, other: Weights) -> list[Problem]:
    """Why two models can't be merged: weights that one lacks, has in another size or no number."""
    where = f"model {other.name}"
    missing = sorted(first.entries.keys() - other.entries.keys())
    more = sorted(other.entries.keys() - first.entries.keys())
    found = []
    for what, names in (
        (f"lacks {{}}, which {first.name} has", missing),
        (f"has {{}}, which {first.name} lacks", more),
    ):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found.append(Problem(where, what.format(names[0] + rest)))
    both = first.entries.keys() & other.entries.keys()
    shapes = [n for n in sorted(both) if first.entries[n]["shape"] != other.entries[n]["shape"]]
    for name in shapes[:_SHOWN]:
        pair = first.entries[name]["shape"], other.entries[name]["shape"]
        found.append(Problem(where, f"{name} is {pair[1]}, and {pair[0]} in {first.name}"))
    return found


def unreadable(weights: Weights) -> list[Problem]:
    """Tensors that hold no floating-point numbers, as those of quantized models."""
    names = [n for n, entry in weights.entries.items() if entry["dtype"] not in DTYPES]
    if not names:
        return []
    what = f"{names[0]} is stored as {weights.entries[names[0]]['dtype']}"
    return [Problem(f"model {weights.name}", what, "give the model that it was made from")]


def write(
    folder: Path, shape: Weights, models: Sequence[Weights], base: Weights | None, merge: Merge
) -> None:
    """Write the merged files.

    Args:
        shape: whose files the result has.

    Raises:
        OSError: it could not be written.
        ModelError: a merged weight is infinite or NaN.
    """
    for file in sorted(set(shape.files.values())):
        begin, entries = fingerprint.header(file)
        target = folder / file.name
        with file.open("rb") as read, target.open("wb") as written:
            written.write(read.read(begin))
        with target.open("r+b") as written:
            for name, entry in entries.items():
                parts = [model.read(name) for model in models]
                found = merge(name, parts, base.read(name) if base else None)
                found = found.to(DTYPES[entry["dtype"]])
                if not torch.isfinite(found).all():
                    what = f"{name} becomes infinite or NaN in {entry['dtype']}"
                    raise ModelError([Problem("merge", what, "give smaller --weights")])
                written.seek(begin + entry["data_offsets"][0])
                written.write(content(found))
