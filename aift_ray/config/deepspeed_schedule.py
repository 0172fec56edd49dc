"""Optimizer and learning-rate schedule of a DeepSpeed configuration, held against the run's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aift_ray.config import lr_schedules
from aift_ray.config.deepspeed_file import Wrong, shown
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.run_config import RunConfig
    from aift_ray.config.training_config import TrainingConfig

# what DeepSpeed takes for a parameter that is left out; betas and eps are those of all AdamW
_LEFT_OUT = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
_STEPS, _PEAK = 1000, 1e-3
_LINEAR = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear"}


def fill(training: TrainingConfig, scheduler: dict[str, Any]) -> None:
    """Give `training` the schedule of a file without contradictions.

    Its number of warm-up steps, which equals the setting's default at least, counts as given.
    """
    if scheduler:
        training.lr_scheduler = scheduler["type"]
    steps = scheduler.get("params", {}).get("warmup_num_steps")
    if steps is not None:
        training.warmup_steps = int(steps)


def differing(key: str, given: object, setting: str, own: object, flag: str | None = None) -> Wrong:
    """Two values of the same thing, and the flag that makes them alike."""
    own = own if isinstance(own, str) else shown(own)
    what = f"{key} is {shown(given)} there, and {setting} is {own}"
    value = flag or f"--{setting} {str(given).lower() if isinstance(given, bool) else given}"
    return what, f'write "auto" in the file, or give {value}'


def optimizer(section: dict[str, Any] | None, config: RunConfig) -> Iterator[Wrong]:
    """What of a file's optimizer is not the run's own."""
    if section is None:
        return
    training, kind = config.training, section.get("type")
    params = section.get("params", {})
    if "type" not in section:
        yield "optimizer.type is left out there", 'write "AdamW", or leave optimizer out'
    # Adam of DeepSpeed is AdamW, unless it is told otherwise
    elif (kind and kind.lower() not in ("adamw", "adam")) or params.get("adam_w_mode") is False:
        what = f"optimizer.type is {shown(kind)} there, and training.optimizer is AdamW"
        yield what, 'write "AdamW", or leave optimizer out'
    own = {
        "lr": ("training.learning_rate", _rate(config)),
        "eps": ("training.adam_epsilon", training.adam_epsilon),
        "weight_decay": ("training.weight_decay", training.weight_decay),
        "betas": (
            "training.adam_beta1 and adam_beta2 together",
            [training.adam_beta1, training.adam_beta2],
        ),
    }
    for key, (setting, value) in own.items():
        yield from _parameter(f"optimizer.params.{key}", params, _LEFT_OUT[key], setting, value)


def scheduler(section: dict[str, Any] | None, config: RunConfig) -> Iterator[Wrong]:
    """What of a file's schedule can't be the run's, or is not."""
    if section is None:
        return
    training, kind = config.training, section.get("type")
    name, params = training.lr_scheduler, section.get("params", {})
    if kind is None and "type" in section:
        # of a wrong type
        return
    if kind not in lr_schedules.OF_DEEPSPEED:
        what = f"scheduler.type is {shown(kind)} there, and training.lr_scheduler is {name}"
        known = " or ".join(lr_schedules.OF_DEEPSPEED)
        yield what, f"leave scheduler out, for training.lr_scheduler to count, or write {known}"
        return
    if "lr_scheduler" in training.model_fields_set and kind != name:
        what = f"scheduler.type is {kind} there, and training.lr_scheduler is {name}"
        yield what, f"leave scheduler out of the file, or give --training.lr_scheduler {kind}"
    if params.get("warmup_min_lr", 0):
        what = f"scheduler.params.warmup_min_lr is {params['warmup_min_lr']} there, and the "
        yield f"{what}warm-up begins at 0", 'write "auto"'
    if params.get("warmup_type") not in (None, "log"):
        what = f"scheduler.params.warmup_type is {shown(params['warmup_type'])} there, and "
        what += f"training.lr_scheduler {kind} rises as log"
        linear = f"--training.lr_scheduler {_LINEAR[kind]}"
        yield what, f"write log, or leave scheduler out and give {linear}"
    if params.get("last_batch_iteration") not in (None, -1):
        what = f"scheduler.params.last_batch_iteration is {params['last_batch_iteration']} there"
        yield f"{what}, and a run continues from its checkpoint", "leave it out, and use --resume"
    # WarmupLR ends at the optimizer's own rate
    peak = _PEAK if kind == "WarmupDecayLR" else _rate(config)
    rate = "training.learning_rate", _rate(config)
    yield from _parameter("scheduler.params.warmup_max_lr", params, peak, *rate)
    yield from _steps(kind, params, training)


def beside(section: dict[str, Any] | None, training: TrainingConfig) -> list[Problem]:
    """Settings that do not act on a file's schedule."""
    kind = (section or {}).get("type")
    if kind not in lr_schedules.OF_DEEPSPEED or "lr_scheduler" in training.model_fields_set:
        return []
    return lr_schedules.contradictions(training.model_copy(update={"lr_scheduler": kind}))


def _steps(kind: str, params: dict[str, Any], training: TrainingConfig) -> Iterator[Wrong]:
    """What of a schedule's numbers of steps is not the run's own."""
    key, most = "scheduler.params.total_num_steps", training.max_steps
    total = params.get("total_num_steps")
    if kind == "WarmupLR" and "total_num_steps" in params:
        yield f"{key} is given there, and WarmupLR has no such parameter", "leave it out"
    elif kind == "WarmupDecayLR" and "total_num_steps" not in params:
        yield f"{key} is left out there", 'write "auto"'
    elif total is not None and total != most:
        yield differing(key, total, "training.max_steps", most)
    warmup = "scheduler.params.warmup_num_steps"
    if training.warmup_ratio is None:
        own: tuple[str, Any] = "training.warmup_steps", training.warmup_steps
        yield from _parameter(warmup, params, _STEPS, *own)
    elif params.get("warmup_num_steps", _STEPS) is not None:
        what = f"{warmup} is {params.get('warmup_num_steps', _STEPS)} there, and "
        yield f"{what}training.warmup_ratio is {training.warmup_ratio}", 'write "auto"'


def _parameter(
    name: str, params: dict[str, Any], default: object, setting: str, own: object
) -> Iterator[Wrong]:
    """A parameter that is not a setting's value; None: it is "auto"."""
    key = name.rpartition(".")[2]
    given = params.get(key, default)
    if given in (None, own):
        return
    what, remedy = differing(name, given, setting, own)
    if isinstance(given, list):
        flags = f"--training.adam_beta1 {given[0]} --training.adam_beta2 {given[1]}"
        what, remedy = differing(name, given, setting, own, flags)
    if key not in params:
        what = f"{name} is left out there, for which DeepSpeed takes {shown(given)}, and "
        what += f"{setting} is {shown(own)}"
    yield what, remedy


def _rate(config: RunConfig) -> float:
    is_default = "learning_rate" not in config.training.model_fields_set
    adapters = config.method != "full"
    return lr_schedules.ADAPTER_RATE if is_default and adapters else config.training.learning_rate
