"""Copies of adapters, by their content: for an engine that reads its files when it likes."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from aift_ray.errors import ModelError
from aift_ray.models.load import skeleton
from aift_ray.serving.adapter_record import FILES, digest
from aift_ray.serving.engines.transformers.lora_manager import misfit


@dataclass(frozen=True)
class Kept:
    """An adapter as it was when it was loaded.

    Attributes:
        digest: of what its files hold; equal adapters have equal ones.
        number: 1 or more, as unique as the digest.
        folder: nobody else writes there.
    """

    digest: str
    number: int
    folder: Path


class KeptAdapters:
    """The adapters of one engine, by the names under which they were loaded.

    Args:
        location: of the base.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._place = Path(tempfile.mkdtemp(prefix="aift-ray-adapters-"))
        self._kept: dict[str, Kept] = {}
        self._numbers: dict[str, int] = {}
        self._next = itertools.count(1)

    def __getitem__(self, name: str) -> Kept:
        return self._kept[name]

    def keep(self, name: str, folder: str) -> Kept:
        """Copy the adapter of a checked folder.

        Raises:
            ModelError: it doesn't fit the model.
        """
        problem = misfit(name, self._skeleton, Path(folder))
        if problem:
            raise ModelError([problem])
        taken = Path(tempfile.mkdtemp(dir=self._place))
        for file in FILES:
            shutil.copyfile(Path(folder) / file, taken / file)
        content = digest(taken)
        own = self._place / content
        if own.is_dir():
            shutil.rmtree(taken)
        else:
            taken.rename(own)
        # the number stays with the content for good: what was computed with it may be held still
        number = self._numbers.setdefault(content, next(self._next))
        self._kept[name] = Kept(content, number, own)
        return self._kept[name]

    def drop(self, name: str) -> int | None:
        """Forget a name; the number of its adapter where no other name has it, else None."""
        kept = self._kept.pop(name)
        if kept in self._kept.values():
            return None
        shutil.rmtree(kept.folder, ignore_errors=True)
        return kept.number

    def close(self) -> None:
        """Remove every copy."""
        shutil.rmtree(self._place, ignore_errors=True)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return skeleton(self._location)
