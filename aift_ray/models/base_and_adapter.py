"""Where the parts of a model lie: the model itself, or the base of an adapter and the adapter."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from aift_ray.errors import ModelError
from aift_ray.models import hub, load, provenance
from aift_ray.models.catalog import CATALOG
from aift_ray.models.folder_check import has_tokenizer
from aift_ray.models.lora.adapter_config import CONFIG
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.model_location import base_of_adapter
from aift_ray.models.vocab_check import check_vocabulary

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a model is loaded from.

    Attributes:
        base, tokenizer: folders or Hub ids.
        adapter: PEFT folder that goes on top of the base.
    """

    base: str
    tokenizer: str
    adapter: Path | None = None

    def load_tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer; ModelError where it writes ids that the model `name` has no row for."""
        tokenizer = hub.load_tokenizer(self.tokenizer)
        if not self.adapter:
            # that of an adapter was checked with it, and may have tokens that its base lacks
            check_vocabulary(name, tokenizer, hub.load_config(self.base))
        return tokenizer


def find_place(name: str) -> Place:
    """Where the model of a name lies.

    Args:
        name: catalog name, Hub id, or folder of a model or an adapter.

    Raises:
        ModelError: it is missing or damaged, no language model, or the adapter's base is missing
            or another one.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return _adapter_place(name, folder)
    location = hub.resolve(name)
    hub.load_config(location)
    hub.check_reach(location, "weights", "tokenizer")
    changed = provenance.changed_prompts(f"model {name}", Path(location))
    if changed:
        raise ModelError(changed)
    if "/" in name and name in CATALOG and location != name:
        say_once(f"{name} is loaded from {location}")
    return Place(location, location)


def _adapter_place(name: str, folder: Path) -> Place:
    base, location = base_of_adapter(name, folder)
    location = provenance.opened_as_trained(location, folder)
    adapter = check_adapter(name, base, location, load.skeleton(location))
    return Place(location, str(adapter) if has_tokenizer(adapter) else location, adapter)


@cache
def say_once(message: str) -> None:
    """Log a message; never a second time."""
    _LOG.info(message)
