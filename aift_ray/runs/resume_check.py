"""Whether a run may go on from a checkpoint with the settings that it is given now."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from aift_ray.config import RunConfig, deepspeed_config
from aift_ray.config.resume_rules import CHANGES, Change, flat, kept
from aift_ray.engine.checkpoint import read_state
from aift_ray.engine.lr_scheduler import learning_rate
from aift_ray.engine.run_state import RunState
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models import hub, provenance
from aift_ray.runs import run_dir

_FILES, _TOKENS = "data.train_files", "data.tokens_per_micro_batch"
# what the run itself decides where the user leaves it out
_DERIVED = ("learning_rate", "warmup_steps")


def resumed(config: RunConfig, folder: Path, workers: int) -> tuple[RunState, list[str]]:
    """Where the run of checkpoint `folder` is, and what of its settings has changed.

    Args:
        config: with what the model and the machine have decided; gets what the run keeps of what
            is not given: its learning rate and warm-up, and the micro-steps of its global batch.
        workers: the largest number of workers.

    Raises:
        ConfigError: with every setting that must be as it was.
    """
    state = read_state(folder)
    keep_derived(config, state.settings)
    problems = _judged(config, folder, state)
    kept_batch = _keep_batch(config, state, workers)
    told: list[str] = []
    if state.settings:
        told, refused = differences(state.settings, config)
        told += kept_batch + _renamed(config, state)
        problems += refused
    elif not problems:
        problems = _older(config, folder)
    if problems:
        raise ConfigError(problems)
    return state, told


def _renamed(config: RunConfig, state: RunState) -> list[str]:
    """What to tell of a base with another name, whose weights are the same or can't be compared."""
    before = state.settings["model"]
    same = before == config.model
    return [] if same else [f"model is {config.model}, and was {before}"]


def keep_derived(config: RunConfig, saved: dict[str, Any]) -> None:
    """Give what was left out, and is derived in a new run, the value of the `saved` settings.

    A checkpoint of older versions has no settings: its run took the defaults as they stand.
    """
    training = config.training
    for name in _DERIVED:
        if name not in training.model_fields_set:
            setattr(training, name, saved.get(f"training.{name}", getattr(training, name)))


def _keep_batch(config: RunConfig, state: RunState, workers: int) -> list[str]:
    """Take as many micro-steps as give the run's global batch, if that can be; what to tell."""
    training = config.training
    asked, was = training.gradient_accumulation_steps, state.settings
    each = workers // config.parallel.workers_per_replica * training.batch_size
    units, rest = divmod(state.global_batch, each)
    parts = config.parallel.pipeline_microbatches or 1
    if not state.global_batch or asked == units:
        return []
    if rest or units * training.batch_size % parts:
        return [
            f"a step keeps its {state.global_batch} examples, whatever training.batch_size says"
        ]
    training.gradient_accumulation_steps = units
    if was.get("training.gradient_accumulation_steps") != units:
        # is told among the differences
        return []
    kept = f"a step keeps its {state.global_batch} examples"
    return [f"{kept}: training.gradient_accumulation_steps is {units}, not {asked}"]


def differences(saved: dict[str, Any], config: RunConfig) -> tuple[list[str], list[Problem]]:
    """What may differ from the `saved` settings and does, a line each; and what must not."""
    told, problems, parallel = [], [], config.parallel
    may_offload = parallel.offload or parallel.strategy == "auto"
    for name, value in kept(flat(config)).items():
        change = CHANGES[name]
        judged = change is Change.JUDGED or name == _FILES
        follows = name == "training.warmup_steps" and config.training.warmup_ratio is not None
        # of "auto" the strategy comes later, and with offload the tokens of a micro-batch
        later = value == "auto" or (value is None and name == _TOKENS and may_offload)
        if judged or follows or later or _alike(saved.get(name, value), value):
            continue
        if name.startswith("lora.") and config.method == "full":
            continue
        if change is Change.TOLD or name in config.resume_allow:
            told.append(f"{name} is {_shown(value)}, and was {_shown(saved[name])}")
            continue
        given = saved[name] not in (None, "", [], {})
        give = f"give --{name} {_shown(saved[name])}" if given else f"leave --{name} out"
        remedy = f"{give}, or start again in another output folder"
        if change is Change.REFUSED:
            remedy += f"; --resume-allow {name} continues with other steps"
        what = f"{_shown(value)} differs from the {_shown(saved[name])} of the run that is resumed"
        problems.append(Problem(name, what, remedy))
    return told, problems


def _alike(one: object, other: object) -> bool:
    """Whether two values mean the same: the order of names does not count."""
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return bool(one == other)


def check_rows(config: RunConfig, state: RunState, data: str) -> list[str]:
    """What to tell where the rows are not those of the run; `data` names their token cache.

    Raises:
        ConfigError: the training rows changed.
    """
    before, now = state.settings, flat(config)
    named = [n for n in before if n.startswith("data.") and before[n] != now[n]]
    if state.data == data or set(named) - {_FILES, "data.eval_files"}:
        # a setting that makes other rows was told already
        return []
    if named == ["data.eval_files"]:
        return ["the evaluation rows changed since the checkpoint"]
    what = "the rows or how they are tokenized changed since the checkpoint"
    if not before or _FILES in config.resume_allow:
        return [f"{what}: the steps to come are not those of the run that was stopped"]
    remedy = f"give the files as they were; --resume-allow {_FILES} continues with other steps"
    raise ConfigError([Problem(_FILES, what, remedy)])


def schedule(config: RunConfig, state: RunState, epoch: int, steps: int) -> list[str]:
    """What other numbers of steps do to the learning rate.

    Args:
        epoch: steps of an epoch.
        steps: of the whole run, now.
    """
    saved, training = state.settings, config.training
    if not saved:
        return []
    before = saved["training.max_steps"] or saved["training.num_epochs"] * epoch
    if before == steps or state.step >= steps:
        return []
    old = training.model_copy(update={"warmup_steps": saved["training.warmup_steps"]})
    was, now = learning_rate(old, state.step, before), learning_rate(training, state.step, steps)
    how = f"the run has {steps} steps now, and had {before}"
    if was == now:
        return [how]
    curve = f"the {training.lr_scheduler} schedule is laid over all {steps}"
    had = f"{was:.2e}" if state.step < before else "none"
    return [f"{how}: {curve}, so that step {state.step + 1} has a rate of {now:.2e}; it had {had}"]


def done(config: RunConfig, folder: Path) -> bool:
    """Whether the run in `folder` has all the steps that it is asked for.

    Raises:
        ConfigError: it has, and they were made with other settings.
    """
    if config.resume != "latest" or not run_dir.finished(folder):
        return False
    try:
        found = yaml.safe_load((folder / run_dir.CONFIG).read_text(encoding="utf-8"))
        saved = flat(RunConfig(**found))
    except (OSError, ValueError, TypeError, yaml.YAMLError, ConfigError):
        # without it nothing is known but that the run is done
        return True
    if _more(config, saved, run_dir.summary(folder)):
        return False
    config = config.model_copy(deep=True)
    deepspeed_config.fill(config)
    keep_derived(config, saved)
    if "sequence_length" not in config.data.model_fields_set:
        # the model has settled it
        saved.pop("data.sequence_length")
    _, problems = differences(saved, config)
    if problems:
        raise ConfigError(problems)
    return True


def _more(config: RunConfig, saved: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Whether more steps or epochs are asked for than those of a finished run."""
    training = config.training
    if summary.get("stopped_early"):
        patience = training.early_stopping_patience
        before = saved["training.early_stopping_patience"]
        # what ended it would not end it now
        if before and (not patience or patience > before):
            return True
    if training.max_steps == saved["training.max_steps"]:
        epochs = saved["training.num_epochs"]
        return training.max_steps is None and training.num_epochs > epochs
    return training.max_steps is None or training.max_steps > summary.get("steps", 0)


def _judged(config: RunConfig, folder: Path, state: RunState) -> list[Problem]:
    """What is compared by what it stands for: the method, and the weights of the base."""
    field, remedy = f"resume {folder}", "give the --method it was made with"
    adapter = (folder / "adapter_config.json").is_file()
    if adapter != (config.method != "full"):
        what = f"is a checkpoint of {'LoRA' if adapter else 'full'} training"
        return [Problem(field, what, remedy)]
    problems = []
    if state.trained_as not in ("", config.trained_with):
        # its adapters have learned to make up for the rounding of another base model
        what = f"was trained as {state.trained_as}, and this run is {config.trained_with}"
        problems.append(Problem(field, what, f"{remedy}, and its lora.qlora_4bit"))
    base = _other_base(config, folder, state, adapter)
    if base:
        what = f"was trained on {base}, and {config.model} has other weights"
        problems.append(Problem(field, what, f"give --model {base}"))
    changed = provenance.changed_base(folder, hub.resolve(config.model))
    if changed and not base:
        what = f"was trained with other settings in {config.model}'s config.json: "
        problems.append(Problem(field, what + "; ".join(changed), "restore them"))
    return problems


def check_experts(config: RunConfig, state: RunState, experts: int) -> None:
    """Refuse adapters that were trained on experts in 16 bits, where they are in 4 now.

    Before settings were kept with checkpoints, QLoRA left the experts of a mixture as they are.
    Its adapters have learned beside exact experts: the steps to come would be those of no run.

    Args:
        experts: number of the experts' weights.

    Raises:
        ConfigError: such a checkpoint.
    """
    if not state.settings and experts and config.base_bits == 4:
        what = "was trained on experts in 16 bits, which are held in 4 now"
        remedy = "start again in another output folder, or finish it with the version it began with"
        raise ConfigError([Problem(f"resume {config.resume}", what, remedy)])


def _other_base(config: RunConfig, folder: Path, state: RunState, adapter: bool) -> str | None:
    """The model of the run, where the one that is named now is another."""
    recorded = provenance.other_base(folder, hub.resolve(config.model))
    if recorded or adapter:
        return recorded
    # older checkpoints of all weights have the name alone: it must have begun as the same
    before = str(state.settings.get("model", config.model))
    was, now = _identity(before), _identity(config.model)
    return before if was and now and was != now else None


def _identity(model: str) -> str | None:
    """The fingerprint of a model's weights; None: they are not on this machine."""
    try:
        return provenance.identity(hub.resolve(model))
    except (OSError, ValueError, ModelError):
        return None


def _older(config: RunConfig, folder: Path) -> list[Problem]:
    """What the adapters themselves tell, of a checkpoint without settings."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not saved:
        return []
    lora, own = config.lora, str(saved.get("init_lora_weights"))
    pairs = {
        "r": (lora.r, saved["r"]),
        "experts": (lora.experts, bool(saved.get("target_parameters"))),
        "init_lora_weights": (lora.init_lora_weights == "pissa", own.startswith("pissa")),
    }
    return [
        Problem(f"lora.{name}", "differs from the checkpoint's", f"give --lora.{name} as it was")
        for name, (now, before) in pairs.items()
        if now != before
    ]


def _shown(value: object) -> str:
    """A value as it is typed behind its flag."""
    if isinstance(value, dict):
        return ",".join(f"{name}={held}" for name, held in value.items()) or "none"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        given = [{k: v for k, v in each.items() if v is not None} for each in value]
        return shlex.quote(json.dumps(given, ensure_ascii=False))
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if value in (True, False) else str(value)
