"""From a model's name to its folder, tokenizer and configuration; every way it can fail.

Nothing here loads weights, so the command that starts a run needs none of the modelling code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from aift_ray.data.prompts.alpaca import KNOWN
from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import find, nearest, suggestion
from aift_ray.models.families.refusals import refusal
from aift_ray.models.fingerprint import on_disk, weight_files
from aift_ray.models.folder_check import TOKENIZERS, has_tokenizer, other_task
from aift_ray.models.model_location import resolve as resolve
from aift_ray.models.model_location import stop_ids as stop_ids
from aift_ray.models.scaled_rope import scale, scaling_of
from aift_ray.models.transformers_compat import forget_vocabulary
from aift_ray.utils.hub_reach import why_unreached

# networks that once were code beside their weights, and have a class in transformers by now:
# its name, and what its configuration calls the old numbers
_NATIVE = {"stablelm_epoch": ("stablelm", {"norm_eps": "layer_norm_eps"})}


def tokenizer_bytes(location: str) -> int:
    """The size of a tokenizer's file; 0 for a Hub id not on disk."""
    file = Path(location) / TOKENIZERS[0]
    return file.stat().st_size if file.is_file() else 0


def load_tokenizer(location: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved location."""
    check_reach(location, "tokenizer")
    with explained(location):
        # a tokenizer with code beside it: what its tokenizer.json says is used, and no code is run
        coded = "auto_map" in get_tokenizer_config(location)
        kind: Any = PreTrainedTokenizerFast if coded else AutoTokenizer
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(location, trust_remote_code=False)
    forget_vocabulary(tokenizer)
    entry = find(location)
    if entry and not tokenizer.chat_template:
        tokenizer.chat_template = KNOWN.get(entry.template)
    return tokenizer


def load_config(location: str, scorer: bool = False) -> Any:
    """The transformers configuration of a resolved location.

    Args:
        scorer: the weights may be those of a reward model too.

    Raises:
        ModelError: there is none, transformers has no such model, its architecture is not that
            of a language model, or its rotary embeddings can't be scaled as the location says.
    """
    found, scaling = _load_config(location, scorer), scaling_of(location)
    if scaling:
        scale(found, scaling)
    return found


def check_reach(location: str, *parts: str) -> None:
    """ModelError for what is neither on this machine nor on a Hub that answers.

    The Hub's own client tries again for half a minute before it says so.

    Args:
        parts: of a Hub id, "weights" or "tokenizer", that have to be there with its configuration.
    """
    folder = on_disk(location)
    if Path(location).is_dir():
        return
    held = {"weights": weight_files, "tokenizer": has_tokenizer}
    missing = [part for part in parts if folder and not held[part](folder)]
    if (folder is None or missing) and why_unreached():
        raise ModelError([out_of_reach(location, missing)])


def _load_config(location: str, scorer: bool) -> Any:
    check_reach(location)
    with explained(location):
        stored, _ = PreTrainedConfig.get_config_dict(location)
        if wrong := other_task(location, stored, scorer):
            raise ModelError(wrong)
        kind = stored.get("model_type")
        if kind not in _NATIVE and kind not in CONFIG_MAPPING:
            what = f"transformers {transformers.__version__} has no network for {location}"
            raise ModelError([refusal(str(kind), what, None)])
        if kind not in _NATIVE:
            return AutoConfig.from_pretrained(location, trust_remote_code=False)
        kind, renamed = _NATIVE[stored.pop("model_type")]
        stored.pop("auto_map", None)
        stored["partial_rotary_factor"] = stored.pop("rope_pct", 0.25)
        return AutoConfig.for_model(kind, **{renamed.get(k, k): v for k, v in stored.items()})


def context(config: PreTrainedConfig) -> int | None:
    """Tokens of prompt and answer together that a model takes; None: any number."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if found and found > 0 else None


def batched_context(config: PreTrainedConfig) -> int | None:
    """Tokens up to which texts of a batch don't change each other; None: any number.

    Rotary frequencies of some kinds are chosen by the longest position of a forward pass.
    """
    text = config.get_text_config()
    limit, rope = context(config), getattr(text, "rope_parameters", None) or {}
    nested = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    for one in nested:
        kind, original = one.get("rope_type"), one.get("original_max_position_embeddings")
        original = original or getattr(text, "original_max_position_embeddings", None)
        if kind == "longrope" and original and limit:
            limit = min(limit, int(original))
    return limit


class explained:
    """Turns what transformers raises for a wrong model into a ModelError."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, (ModelError, MemoryError)):
            return
        if type(error).__name__ == "OutOfMemoryError":
            return
        raise ModelError([_explanation(self.location, error)]) from error


def _explanation(location: str, error: Exception) -> Problem:
    where = f"model {location}"
    if caused_by(error, GatedRepoError):
        remedy = f"accept its terms at https://huggingface.co/{location} and set HF_TOKEN"
        return Problem(where, "gated: the Hub wants an account that has accepted its terms", remedy)
    if caused_by(error, RepositoryNotFoundError):
        what = "missing: the Hub has no such model, or it is private"
        return Problem(where, what, suggestion(location))
    if unreachable(error):
        return out_of_reach(location)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if caused_by(error, SafetensorError):
        return Problem(where, f"its weights are damaged: {text}", "copy them again")
    return Problem(where, text)


def unreachable(error: BaseException) -> bool:
    """Whether a model was not found because the Hub could not be asked."""
    return caused_by(error, LocalEntryNotFoundError)


def out_of_reach(name: str, parts: Sequence[str] = ()) -> Problem:
    """What is wrong with a model that is on the Hub only, without a network.

    Args:
        parts: of it that are missing; empty: all of it.
    """
    subject = f"its {' and '.join(parts)} " if parts else ""
    what = f"{subject}missing on this machine, and the Hub can't be reached"
    owner = name.lower().split("/")[0]
    alike = [] if find(name) else nearest(name)
    near = [each for each in alike if each.lower().split("/")[0] == owner]
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return Problem(f"model {name}", what, f"check the network, or give a local folder{meant}")


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether `error`, or one that it came from, is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
