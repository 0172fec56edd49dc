"""What adapter_config.json of a folder says, where it is that of a LoRA adapter."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from aift_ray.errors import ModelError, Problem

CONFIG = "adapter_config.json"
# PEFT's tasks whose models have no output layer for tokens
_SCORING = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# adapters that are not in the weights of a base: they act on its inputs, or beside its layers
_PROMPTS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"),
    *("ADAPTION_PROMPT", "CARTRIDGE", "XLORA", "POLY"),
)
_ONLY = "of PEFT's adapters only 'LORA', with rsLoRA and DoRA, is supported"
# what makes more of an adapter than low-rank matrices of a base's layers
_BEYOND = {
    "layer_replication": "its network has other layers than its base",
    "alora_invocation_tokens": "it acts on what follows certain tokens of a prompt alone",
    "arrow_config": "it chooses among other adapters for each token",
    "lora_bias": "its matrices have biases",
}
# of settings that PEFT computes with
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "r": ((int,), "a whole number"),
    "lora_alpha": ((int, float), "a number"),
    "lora_dropout": ((int, float), "a number"),
    "target_modules": ((str, list, type(None)), "a list of names, or a pattern"),
    "modules_to_save": ((list, type(None)), "a list of names"),
    "rank_pattern": ((dict, type(None)), "an object"),
    "alpha_pattern": ((dict, type(None)), "an object"),
}
# variants whose layers compute something else than the product of two matrices
_VARIANTS = ("kasa_config", "monteclora_config", "use_bdlora")


def adapter_config(folder: Path, where: str) -> dict[str, Any]:
    """What adapter_config.json of a folder says; ModelError where it is none of a LoRA adapter."""
    file = folder / CONFIG
    if not file.is_file():
        what = f"{folder} holds no {CONFIG}" if folder.is_dir() else f"no such folder: {folder}"
        remedy = "give the folder that training or PEFT wrote, such as RUN/model"
        raise ModelError([Problem(where, what, remedy)])
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, where, error) from None
    if not isinstance(found, dict):
        what = f"{file} holds {type(found).__name__}, expected an object"
        raise ModelError([Problem(where, what, "copy it again")])
    base = found.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and base.isprintable()):
        what = f"{file} has base_model_name_or_path = {base!r}, expected a name"
        raise ModelError([Problem(where, what, "write the name or the folder of its base")])
    wrong = [
        Problem(where, f"{file} has {name} = {found[name]!r}, expected {expected}", "copy it again")
        for name, (kinds, expected) in _KINDS.items()
        if name in found and (isinstance(found[name], bool) or not isinstance(found[name], kinds))
    ]
    if wrong:
        raise ModelError(wrong)
    if found.get("peft_type") != "LORA":
        raise ModelError([_other_kind(found.get("peft_type"), folder, base, where)])
    if found.get("task_type") in _SCORING:
        what = f"{file} has task_type {found['task_type']}: it is the adapter of a reward model or "
        remedy = "give an adapter of a language model (task_type CAUSAL_LM)"
        raise ModelError([Problem(where, f"{what}classifier, no language model's", remedy)])
    beyond = [f"{file} has {name}: {what}" for name, what in _BEYOND.items() if found.get(name)]
    problems = [Problem(where, what, "use it with plain PEFT") for what in beyond]
    problems += [
        Problem(where, f"{file} has {name}: {_ONLY}", _merged(folder, base))
        for name in _VARIANTS
        if found.get(name)
    ]
    if problems:
        raise ModelError(problems)
    return found


def _other_kind(kind: object, folder: Path, base: str | None, where: str) -> Problem:
    """The problem of an adapter that is no LoRA."""
    what = f"{folder / CONFIG} has peft_type {kind!r}: {_ONLY}"
    if kind in _PROMPTS:
        return Problem(where, f"{what}, and this kind can't be merged", "train a LoRA adapter")
    return Problem(where, what, _merged(folder, base))


def _merged(folder: Path, base: str | None) -> str:
    """The command by which plain PEFT merges an adapter into its base."""
    model = f"peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})"
    lines = [
        "import peft, transformers",
        f"{model}.merge_and_unload().save_pretrained('merged')",
        f"transformers.AutoTokenizer.from_pretrained({base or 'BASE'!r}).save_pretrained('merged')",
    ]
    return f"merge it: python -c {shlex.quote('; '.join(lines))}\nand give `--model merged`"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def damaged(file: Path, where: str, error: Exception) -> ModelError:
    """The error of a file that can't be read."""
    return ModelError([Problem(where, f"{file} is damaged: {error}", "copy it again")])
