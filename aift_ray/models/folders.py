"""From a model's name to its folder, tokenizer and configuration; every way it can fail.

Nothing here loads weights, so the command that starts a run needs none of the modelling code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def resolve(name: str) -> str:
    """The folder, or the Hub id, that `name` stands for.

    Raises:
        ModelError: no such folder or catalog name and no Hub id either; or a folder that lacks
            its config, its tokenizer or safetensors weights.
    """
    location = CATALOG[name].location if name in CATALOG else name
    folder = Path(location).expanduser()
    if folder.is_dir():
        _check_folder(name, folder)
        return str(folder.resolve())
    if name in CATALOG and not _HUB_ID.fullmatch(location):
        raise ModelError([Problem(name, f"its folder {location} is missing", "reinstall aift-ray")])
    if not _HUB_ID.fullmatch(location):
        known = ", ".join(CATALOG)
        raise ModelError(
            [
                Problem(
                    f"model {name}", "no such folder or catalog name", f"the catalog has: {known}"
                )
            ]
        )
    return location


def _check_folder(name: str, folder: Path) -> None:
    problems = []
    if (folder / "adapter_config.json").is_file():
        remedy = "give the base model as --model; merge the adapter first to train on top of it"
        problems.append(Problem(f"model {name}", "the folder holds an adapter, no model", remedy))
    elif not (folder / "config.json").is_file():
        problems.append(Problem(f"model {name}", "the folder has no config.json"))
    else:
        problems += _check_weights(name, folder)
    if not problems and not any((folder / file).is_file() for file in _TOKENIZERS):
        remedy = "copy tokenizer.json and tokenizer_config.json of the model into it"
        problems.append(Problem(f"model {name}", "the folder has no tokenizer", remedy))
    if problems:
        raise ModelError(problems)


def _check_weights(name: str, folder: Path) -> list[Problem]:
    where, files = f"model {name}", sorted(folder.glob("*.safetensors"))
    pickled = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt*")))
    if not files and pickled:
        what = (
            f"its weights are pickles only ({', '.join(pickled)}), which can run code when opened"
        )
        remedy = "convert them with save_pretrained(..., safe_serialization=True) if you trust them"
        return [Problem(where, what, remedy)]
    if not files:
        return [Problem(where, "the folder has no weights (*.safetensors)")]
    problems = []
    for file in files:
        try:
            # compares the header with the size of the file
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            problems.append(Problem(where, f"{file.name} is damaged: {error}", "copy it anew"))
    return problems


def load_tokenizer(location: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved location."""
    with explained(location):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location)
        return tokenizer


def load_config(location: str) -> Any:
    """The transformers configuration of a resolved location."""
    with explained(location):
        return AutoConfig.from_pretrained(location)


def stop_ids(location: str) -> list[int]:
    """End-of-turn ids that generation_config.json names; empty for a Hub id not on disk."""
    file = Path(location) / "generation_config.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    return [found] if isinstance(found, int) else list(found or [])


class explained:
    """Turns what transformers raises for a wrong model into a ModelError."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, (ModelError, MemoryError)):
            return
        if type(error).__name__ == "OutOfMemoryError":
            return
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else type(error).__name__
        remedy = ""
        if not Path(self.location).is_dir():
            remedy = "check the name, the network and your Hub token, or give a local folder"
        raise ModelError([Problem(f"model {self.location}", text, remedy)]) from error
