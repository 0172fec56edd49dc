"""Wrong settings in plain words: the field, what was given, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from aift_ray.errors import Problem

# of names that are taken for each other; what a name in another section has less
_ALIKE, _LAST_PART = 0.55, 0.05
_NONE_SUCH = "there is no such {}"
_OWN_FLAGS = ("config", "dry-run", "help", "help-all")
# settings of TRL, transformers and LLaMA-Factory whose names here are not alike: by which setting
# and value
_ELSEWHERE = {
    "loss_type": ("objective", "ipo, or another loss of pairs; that of grpo is grpo.loss_type"),
    "pref_loss": ("objective", "dpo, ipo, orpo, simpo or kto"),
    "stage": ("objective", "sft, dpo, kto, reward or grpo"),
    "finetuning_type": ("method", "full, lora or qlora"),
    "use_peft": ("method", "lora"),
    "adapter": ("method", "lora; lora.init_from trains an adapter further"),
    "adapter_name_or_path": ("lora.init_from", ""),
    "load_in_4bit": ("method", "qlora"),
    "load_in_8bit": ("method", "qlora, and lora.qlora_4bit false"),
    "quantization_bit": ("method", "qlora"),
    "bf16": ("training.precision", "bf16"),
    "lora_rank": ("lora.r", ""),
    "lr": ("training.learning_rate", ""),
    "epochs": ("training.num_epochs", ""),
    "num_train_epochs": ("training.num_epochs", ""),
    "lr_scheduler_type": ("training.lr_scheduler", ""),
    "ref_model": ("preference.reference", ""),
    "ref_model_name_or_path": ("preference.reference", ""),
    "dpo_beta": ("preference.beta", ""),
    "kto_beta": ("preference.beta", ""),
    "max_length": ("data.sequence_length", ""),
    "max_prompt_length": ("data.sequence_length", ""),
    "cutoff_len": ("data.sequence_length", ""),
    "dataset": ("data.train_files", ""),
    "dataset_name": ("data.train_files", ""),
    "eval_dataset": ("data.eval_files", ""),
    "val_size": ("data.validation_fraction", ""),
    "model_name_or_path": ("model", ""),
}


def flags_of(section: type[BaseModel]) -> dict[str, Any]:
    """Every flag and its annotation, the short ones too."""
    found = dict(_annotations(section))
    shorts = getattr(section, "short_flags", {}).items()
    flags = [(n, [short] if isinstance(short, str) else short) for n, short in shorts]
    return {short: found[name] for name, several in flags for short in several} | found


def _annotations(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _annotations(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def wrong(section: type[BaseModel], detail: dict[str, Any]) -> Problem:
    """What pydantic says of one field, in plain words."""
    loc = [part for part in detail["loc"] if isinstance(part, str)]
    name = ".".join(loc)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(section, loc, name)
    if detail["type"] == "missing":
        return Problem(name, "is missing")
    given = detail["input"]
    shown = "a section" if isinstance(given, dict) else repr(given)
    if isinstance(given, dict) and get_origin(dict(_annotations(section)).get(name)) is dict:
        shown = ",".join(f"{key}={value}" for key, value in given.items())
    expected = detail["msg"].removeprefix("Value error, ")
    what = f"{shown} is not allowed: {expected[:1].lower()}{expected[1:]}"
    if detail["type"] == "model_type":
        what = f"{shown} is not allowed: expected {_keys(_section_at(section, loc))}"
    return Problem(name, what, _nearest(given, choices(flags_of(section).get(name))))


def _unknown_key(section: type[BaseModel], loc: Sequence[str], name: str) -> Problem:
    """A key that does not exist, with the nearest one of its own level, else of another one."""
    inner, last = _section_at(section, loc[:-1]), loc[-1]
    of_command = hasattr(section, "short_flags")
    if of_command and (len(loc) == 1 or last in _ELSEWHERE):
        return unknown(section, name, "setting")
    near = max(inner.model_fields, key=lambda each: _likeness(last, each))
    if _likeness(last, near) >= _ALIKE:
        before = name.removesuffix(last)
        return Problem(name, _NONE_SUCH.format("setting"), f"did you mean '{before}{near}'?")
    if of_command:
        return replace(unknown(section, last, "setting"), where=name)
    return Problem(name, _NONE_SUCH.format("setting"), f"expected {_keys(inner)}")


def _keys(section: type[BaseModel]) -> str:
    return f"{{{', '.join(section.model_fields)}}}"


def _section_at(section: type[BaseModel], loc: Sequence[str]) -> type[BaseModel]:
    """The section whose keys stand at a place; names of a mapping's own entries are passed."""
    for part in loc:
        field = section.model_fields.get(part)
        section = (_section_in(field.annotation) if field else None) or section
    return section


def _section_in(kind: object) -> type[BaseModel] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((found for part in get_args(kind) if (found := _section_in(part))), None)


def choices(kind: object) -> list[str]:
    """The words that an annotation allows."""
    if get_origin(kind) is Literal:
        return [each for each in get_args(kind) if isinstance(each, str)]
    return [each for part in get_args(kind) for each in choices(part)]


def _nearest(given: object, allowed: list[str]) -> str:
    """The allowed word that was meant, by its likeness; "": none is like it."""
    near = difflib.get_close_matches(str(given).lower(), allowed, 1, _ALIKE)
    return f"did you mean '{near[0]}'?" if near else ""


def unknown(section: type[BaseModel], name: str, what: str) -> Problem:
    """A setting or flag that does not exist, with the one of its meaning or the nearest name."""
    # of a file the names of sections, of a command line those of its own flags
    others = section.model_fields if what == "setting" else _OWN_FLAGS
    known = [*flags_of(section), *others]
    near = max(known, key=lambda each: _likeness(name, each))
    dashes = "--" if what == "flag" else ""
    found = _likeness(name, near) >= _ALIKE
    elsewhere, value = _ELSEWHERE.get(name.replace("-", "_").rsplit(".", 1)[-1], ("", ""))
    # another command may lack it
    if elsewhere in known:
        hint = f"write {dashes}{elsewhere} {value}".strip()
        return Problem(f"{dashes}{name}", _NONE_SUCH.format(what), hint)
    hint = f"did you mean '{dashes}{near}'?" if found else "see --help for all of them"
    return Problem(f"{dashes}{name}", _NONE_SUCH.format(what), hint)


def _likeness(given: str, known: str) -> float:
    """0 to 1: of whole names, or of their last parts, however words are joined in them."""
    given, known = (text.replace("-", "_").lower() for text in (given, known))
    whole = difflib.SequenceMatcher(None, given, known).ratio()
    given, known = (text.rsplit(".", 1)[-1] for text in (given, known))
    return max(whole, difflib.SequenceMatcher(None, given, known).ratio() - _LAST_PART)


def loose(section: type[BaseModel], word: str) -> Problem:
    """A word of the command line that follows no flag."""
    named = next((flag for flag in ("train-file", "model") if flag in flags_of(section)), "")
    hint = f"did you mean '--{named} {word}'?" if named else "see --help for the flags"
    return Problem(f"'{word}'", "does not follow a flag", hint)
