"""What a folder that this package wrote remembers: its base and its prompts.

It is a file of its own, `aift_ray.json`. PEFT warns of keys in adapter_config.json that it does not
know, other tools that read the file refuse them, and whatever writes the weights anew drops the
metadata of a safetensors file; a file beside them is read by nobody else and copied with the rest.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from aift_ray.config.rope_scaling import RopeScaling
from aift_ray.errors import ModelError, Problem
from aift_ray.models import scaled_rope
from aift_ray.models.fingerprint import fingerprint, on_disk
from aift_ray.models.forward_settings import changed_settings, forward_settings
from aift_ray.models.scaled_rope import scaling_of

FILE = "aift_ray.json"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "add_bos_token", "add_eos_token")
_TEMPLATE = "chat_template.jinja"
# digests of what files say, by the digests of the files
_read_before: dict[tuple[tuple[str, bytes], ...], dict[str, str]] = {}


def record(folder: Path, base: str | None = None, quantized_from: str | None = None) -> None:
    """Write what `folder` remembers, once all else is in it.

    Args:
        base: of an adapter, or of a checkpoint: the location of the model that it was trained on.
        quantized_from: of a quantized model: the location of the model with all its bits.
    """
    try:
        found: dict[str, Any] = dict(prompts(folder))
    except ValueError:
        found = {}
    if base is not None:
        found["base"] = {"name": base, "weights": _known(base), "settings": _settings(base)}
        if scaling_of(base):
            found["base"][scaled_rope.FIELD] = scaling_of(base)
    if quantized_from is not None:
        found["weights"] = fingerprint(str(folder))
        found["quantized_from"] = _known(quantized_from)
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def remembered(folder: Path) -> dict[str, Any]:
    """What a folder remembers; empty for one that others wrote.

    Raises:
        ValueError: the file, which is named, is damaged.
    """
    if not (folder / FILE).is_file():
        return {}
    found = _object(folder / FILE)
    base = found.get("base")
    settings = base.get("settings") if isinstance(base, dict) else None
    if not isinstance(base or {}, dict) or not isinstance(settings or {}, dict):
        raise ValueError(f"{folder / FILE} is damaged: base or its settings are no object")
    return found


def identity(location: str) -> str | None:
    """The fingerprint of a model, or of the one that it was quantized from.

    So an adapter fits its base in 4 or 8 bits, too. None: the weights are not on this machine.

    Raises:
        OSError, ValueError: a file can't be read.
    """
    own, folder = fingerprint(location), on_disk(location)
    if own is None or folder is None:
        return None
    found = remembered(folder)
    # the file may have been left behind beside other weights
    origin = found.get("quantized_from") if found.get("weights") == own else None
    return str(origin) if origin else own


def other_base(folder: Path, location: str) -> str | None:
    """The base that training has recorded in a folder, where `location` is another.

    Raises:
        OSError, ValueError: a file can't be read.
    """
    recorded = remembered(folder).get("base") or {}
    held = identity(location)
    known = recorded.get("weights") and held
    return str(recorded["name"]) if known and recorded["weights"] != held else None


def opened_as_trained(location: str, *adapters: Path) -> str:
    """The base of adapters, whose rotary embeddings are scaled as training has recorded it.

    A damaged record is left to those who check an adapter, and so are adapters that were trained
    otherwise than the first.
    """
    for folder in adapters:
        with suppress(ValueError, OSError):
            found = (remembered(folder).get("base") or {}).get(scaled_rope.FIELD)
            if found:
                return scaled_rope.scaled(location, str(RopeScaling.parse(str(found))))
    return location


def changed_base(folder: Path, location: str) -> list[str]:
    """Settings of a base that differ from those that training has recorded in a folder, in words.

    Empty for a folder that was written before they were recorded.

    Raises:
        ValueError: the record is damaged.
        ModelError: transformers does not know the configuration of the base.
    """
    recorded = remembered(folder).get("base") or {}
    return changed_settings(recorded.get("settings") or {}, location)


def _settings(location: str) -> dict[str, Any]:
    try:
        return forward_settings(location)
    except (ModelError, OSError, ValueError):
        # as of weights: no reason to lose what was made of the base
        return {}


def _known(location: str) -> str | None:
    try:
        return identity(location)
    except (OSError, ValueError):
        # the weights were loaded, and may be gone since: no reason to lose what was made of them
        return None


def changed_prompts(where: str, folder: Path) -> list[Problem]:
    """Tokenizer and chat template of a folder that are no longer those it was trained with.

    Args:
        where: the folder as messages name it.
    """
    remedy = f"bring it back; where the change is meant, remove {folder / FILE}"
    try:
        found = remembered(folder)
        # to read a large vocabulary takes seconds
        now = prompts(folder) if found else {}
    except (OSError, ValueError) as error:
        return [Problem(where, str(error), "copy it again")]
    return [
        Problem(where, f"the {what} of {folder} was changed after it was trained", remedy)
        for name, what in (("tokenizer", "tokenizer"), ("chat_template", "chat template"))
        if name in found and found[name] != now.get(name)
    ]


def prompts(folder: Path) -> dict[str, str]:
    """Digests of what a folder's files say of the ids of a prompt; empty without a tokenizer.

    Raises:
        ValueError: a file, which is named, is damaged.
    """
    names = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not names:
        return {}
    # every checkpoint of a run has the same files; to read a large vocabulary takes seconds
    held = [n for n in (*names, "tokenizer_config.json", _TEMPLATE) if (folder / n).is_file()]
    key = tuple((name, hashlib.sha256((folder / name).read_bytes()).digest()) for name in held)
    if key not in _read_before:
        _read_before[key] = _prompts(folder, names)
    return dict(_read_before[key])


def _prompts(folder: Path, names: list[str]) -> dict[str, str]:
    vocabulary = {name: _content(folder / name) for name in names}
    file = folder / "tokenizer_config.json"
    settings = _object(file) if file.is_file() else {}
    tokens = {name: _text(settings.get(name)) for name in _SPECIAL_TOKENS}
    template: Any = settings.get("chat_template")
    if (folder / _TEMPLATE).is_file():
        template = _read(folder / _TEMPLATE)
    return {"tokenizer": _digest([vocabulary, tokens]), "chat_template": _digest(template)}


def _content(file: Path) -> Any:
    if file.name != "tokenizer.json":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    # left over from earlier calls of a tokenizer; they change no ids of ours
    return _object(file) | {"truncation": None, "padding": None}


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds {type(found).__name__}, no object")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _text(token: object) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
