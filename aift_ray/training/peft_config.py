"""PEFT's own `LoraConfig` in place of this package's, as TRL's users have it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from peft import LoraConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from aift_ray.config import LoRAConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.models import hub

_TAKEN = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora")
# what PEFT itself or this package finds out
_FOUND = (
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "fan_in_fan_out",
    "ensure_weight_tying",
    "runtime_config",
)
_STARTS = {True: "default", "pissa": "pissa", "pissa_niter_16": "pissa"}


def as_own(config: object, model: str) -> LoRAConfig:
    """The settings of a peft.LoraConfig; a LoRAConfig is returned as it is.

    Args:
        model: for whose family PEFT chooses layers where `target_modules` is None.

    Raises:
        ConfigError: every field that asks for something that is not done, by its name.
    """
    if isinstance(config, LoRAConfig):
        return config
    if not isinstance(config, LoraConfig):
        what = f"{type(config).__name__} is not allowed: give a LoRAConfig, or PEFT's LoraConfig"
        raise ConfigError([Problem("lora_config", what)])
    values: dict[str, Any] = {name: getattr(config, name) for name in _TAKEN}
    problems = []
    targets, whole = config.target_modules, config.modules_to_save
    if targets is None:
        kind = hub.load_config(hub.resolve(model)).model_type
        targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
        if targets is None:
            what = f"is None, and PEFT has no layers for the family {kind}"
            problems.append(Problem("target_modules", what, "name them, or give 'all-linear'"))
    if isinstance(targets, str) and targets != "all-linear":
        what = "is a regular expression: give a list of names, or 'all-linear'"
        problems.append(Problem("target_modules", what))
    elif targets is not None and targets != "all-linear":
        values["target_modules"] = sorted(targets)
    if whole is not None:
        values["modules_to_save"] = sorted(whole)
    start = config.init_lora_weights
    if start in _STARTS:
        values["init_lora_weights"] = _STARTS[start]
    else:
        what = f"{start!r} is not done: give True or 'pissa'"
        problems.append(Problem("init_lora_weights", what))
    if config.task_type not in (None, "CAUSAL_LM"):
        problems.append(Problem("task_type", f"{config.task_type} is not done: give CAUSAL_LM"))
    problems += _refused(config)
    if problems:
        raise ConfigError(problems)
    return LoRAConfig(**values)


def _refused(config: LoraConfig) -> list[Problem]:
    """Fields that are set and have no setting here."""
    known = {*_TAKEN, *_FOUND, "target_modules", "modules_to_save", "init_lora_weights"}
    known.add("task_type")
    found = []
    for field in fields(config):
        if field.name in known:
            continue
        made = field.default_factory
        usual = made() if made is not MISSING else field.default
        value = getattr(config, field.name)
        if value != usual and value:
            problem = Problem(field.name, f"{value!r} is not done here", "leave it out")
            found.append(problem)
    return found
