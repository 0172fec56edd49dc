"""The folder of a whole model of which the language model was trained.

The weights of the source folder are copied byte for byte, all but those of the language model,
which are written at the places that they have there, in the dtypes that they have there. So the
towers, their processors and the configuration are those of the source, and whatever opens the
source opens the result. One tensor is in memory at a time; of families whose files transformers
converts while it reads them, one block.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from aift_ray.errors import ModelError, Problem
from aift_ray.models import fingerprint
from aift_ray.models.families.refusals import refusal
from aift_ray.models.hub import load_config
from aift_ray.models.load import skeleton
from aift_ray.models.safetensors_layout import DTYPES, content
from aift_ray.models.transformers_compat import set_conversions

_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
# what speaks of other weights, or is written anew
_NOT_COPIED = ("adapter_config.json", "aift_ray.json", "params.json", "quantization.json")
_BLOCK = re.compile(r"^.*?\.\d+\.")
_PIECE = 16 * 2**20

Entry = tuple[Path, int, dict[str, Any]]


class WholeFolder:
    """Writes the weights of a language model over those of the folder that it was loaded from.

    Args:
        location: of the whole model, resolved, on this machine.

    Raises:
        ModelError: the places of some weight can't be told.
    """

    def __init__(self, location: str) -> None:
        self.family = load_config(location).model_type
        self._location = location
        folder = fingerprint.on_disk(location)
        if folder is None:
            what = "its weights are not on this machine, and the whole is made of them"
            raise ModelError([Problem(f"model {location}", what, "download it, or give a folder")])
        self.source = folder
        self._files = fingerprint.weight_files(folder)
        self._stored = _table(self._files)
        self._model = skeleton(location)
        self._direct, self._converted = self._places()
        self._waiting: dict[str, dict[str, torch.Tensor]] = {}
        self._left: set[str] = set()
        self._folder: Path | None = None

    def _places(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Names in the source of each weight, and of the weights of blocks to be converted."""
        model, state = self._model, self._model.state_dict()
        known = get_model_conversion_mapping(model)
        renamings = [one for one in known if isinstance(one, WeightRenaming)]
        converters = [one for one in known if isinstance(one, WeightConverter)]
        direct: dict[str, list[str]] = {}
        for name in sorted(self._stored, key=dot_natural_key):
            prefix = model.base_model_prefix
            own, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if own in state and pattern is None:
                direct.setdefault(own, []).append(name)
        set_conversions(model, [one for one in known if one.was_used()])
        tied = _tied(model)
        blocks: dict[str, list[str]] = {}
        parameters = [n for n, _ in model.named_parameters(remove_duplicate=False)]
        for name in parameters:
            if name not in direct and not (tied.get(name, set()) & direct.keys()):
                found = _BLOCK.match(name)
                blocks.setdefault(found[0] if found else name, []).append(name)
        self._check({n: state[n] for n in direct}, direct)
        for names in blocks.values():
            self._revert({name: state[name] for name in names})
        return direct, blocks

    def _revert(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Converted weights of a block under the names, and in the form, of the source."""
        try:
            found: dict[str, torch.Tensor] = revert_weight_conversion(self._model, tensors)
        except Exception as error:
            raise self._refused(
                f"{next(iter(tensors))} can't be converted back: {error}"
            ) from error
        self._check(found, {name: [name] for name in found})
        return found

    def _check(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, list[str]]) -> None:
        for own, stored in names.items():
            for name in stored:
                if name not in self._stored:
                    raise self._refused(f"its files have no place for {own}")
                entry = self._stored[name][2]
                if entry["dtype"] not in DTYPES:
                    raise self._refused(f"its files hold {name} as {entry['dtype']}")
                if list(tensors[own].shape) != entry["shape"]:
                    raise self._refused(f"its files hold {name} in another size")

    def _refused(self, what: str) -> ModelError:
        what = f"the whole model can't be written with a trained language model: {what}"
        return ModelError([refusal(self.family, what, "--method lora trains an adapter of it")])

    def holds(self, name: str) -> bool:
        """Whether a weight has a place of its own."""
        return name in self._direct or any(name in names for names in self._converted.values())

    def _begin(self, folder: Path) -> None:
        """Copy into `folder` all but the weights of the language model."""
        names = [n for stored in self._direct.values() for n in stored]
        for block in self._converted.values():
            state = self._model.state_dict()
            names += self._revert({name: state[name] for name in block})
        self._folder, self._left = folder, set(names)
        self._download_companions()
        for pattern in _COPIED:
            for path in self.source.glob(pattern):
                if path.name not in _NOT_COPIED and path.is_file():
                    shutil.copyfile(path, folder / path.name)
        extra = self.source / "additional_chat_templates"
        if extra.is_dir():
            shutil.copytree(extra, folder / extra.name)
        for file in self._files:
            self._copy(file, folder / file.name)

    def _download_companions(self) -> None:
        """Have what was not needed so far of a model of the Hub, such as its image processor."""
        if not Path(self._location).is_dir():
            # without them the folder is whole for text
            with suppress(Exception):
                snapshot_download(self._location, allow_patterns=[*_COPIED])

    def _copy(self, source: Path, target: Path) -> None:
        spans = [e for name, e in self._stored.items() if e[0] == source and name not in self._left]
        size = source.stat().st_size
        with source.open("rb") as read, target.open("wb") as written:
            written.truncate(size)
            start = min((e[1] for e in self._stored.values() if e[0] == source), default=size)
            _copy_span(read, written, 0, start)
            for _, begin, entry in spans:
                first, last = entry["data_offsets"]
                _copy_span(read, written, begin + first, last - first)

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a weight of the language model, under the name that it has there."""
        if name in self._direct:
            for stored in self._direct[name]:
                self._write(stored, tensor)
            return
        found = _BLOCK.match(name)
        block = found[0] if found else name
        if name not in self._converted.get(block, ()):
            # shares the place of another, or is none of the files' business
            return
        waiting = self._waiting.setdefault(block, {})
        waiting[name] = tensor
        if len(waiting) == len(self._converted[block]):
            for stored, part in self._revert(self._waiting.pop(block)).items():
                self._write(stored, part)

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        assert self._folder is not None
        file, begin, entry = self._stored[name]
        with (self._folder / file.name).open("r+b") as written:
            written.seek(begin + entry["data_offsets"][0])
            written.write(content(tensor, DTYPES[entry["dtype"]]))
        self._left.discard(name)

    def write(self, folder: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """All of it, from the weights of a language model by name.

        Raises:
            OSError: it could not be written.
            ModelError: a weight of the language model was not among them.
        """
        self._begin(folder)
        for name, tensor in weights:
            self._put(name, tensor)
        if self._left:
            raise self._refused(f"{min(self._left)} was not trained here")


def _tied(model: PreTrainedModel) -> dict[str, set[str]]:
    """For each weight that is one with others: their names."""
    found: dict[str, set[str]] = {}
    for one, other in model.all_tied_weights_keys.items():
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return found


def _table(files: Iterable[Path]) -> dict[str, Entry]:
    """{tensor: (its file, where the tensors of that begin, its entry in the header)}."""
    found: dict[str, Entry] = {}
    for file in files:
        begin, entries = fingerprint.header(file)
        found |= {name: (file, begin, entry) for name, entry in entries.items()}
    return found


def _copy_span(read: BinaryIO, written: BinaryIO, begin: int, size: int) -> None:
    read.seek(begin)
    written.seek(begin)
    while size:
        content = read.read(min(size, _PIECE))
        if not content:
            raise OSError(f"{read.name} is shorter than its header says")
        written.write(content)
        size -= len(content)
