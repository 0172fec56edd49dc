"""A DeepSpeed configuration file of a user: what of it counts, and what contradicts the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.config import deepspeed_offload
from aift_ray.config.lr_schedules import ADAPTER_RATE
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.parallel_config import ParallelConfig
    from aift_ray.config.run_config import RunConfig

FIELD = "parallel.deepspeed_config"
AUTO = deepspeed_offload.AUTO
# keys of zero_optimization that the engine gets as they are
_ZERO = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "allgather_partitions",
    "allgather_bucket_size",
    "round_robin_gradients",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
# keys without an effect here: model folders are always whole, the optimizer is always torch's
_NO_EFFECT = (
    "stage3_gather_16bit_weights_on_model_save",
    "zero_allow_untested_optimizer",
    "steps_per_print",
)
_SECTIONS = ("zero_optimization", "bf16", "fp16", "optimizer", "aio")
# how files are read and written with device nvme
_AIO = ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events")
_SWITCHES = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "allgather_partitions",
    "round_robin_gradients",
    "single_submit",
    "overlap_events",
)
# of which 0 turns something off
_FROM_ZERO = ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
_MOMENTS = ("adam_beta1", "adam_beta2")
_PARAMS = ("lr", "betas", "eps", "weight_decay", "torch_adam")


def read(path: str) -> dict[str, Any]:
    """The content of a file.

    Raises:
        OSError, ValueError: it can't be read, or is no JSON object.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    for key in _SECTIONS:
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"{key} is not an object")
    if not isinstance(content.get("optimizer", {}).get("params", {}), dict):
        raise ValueError("optimizer.params is not an object")
    return content


def engine_options(parallel: ParallelConfig) -> dict[str, Any]:
    """What the engine is configured with, of the settings and their file, which was checked."""
    content = read(parallel.deepspeed_config) if parallel.deepspeed_config else {}
    zero, aio = content.get("zero_optimization", {}), content.get("aio", {})
    stage = int(parallel.strategy[-1])
    options = {key: zero[key] for key in _ZERO if zero.get(key, AUTO) != AUTO}
    options |= deepspeed_offload.chosen(zero, parallel.offload, stage)
    found: dict[str, Any] = {"zero_optimization": options | {"stage": stage}}
    aio = {key: value for key, value in aio.items() if value != AUTO}
    return found | ({"aio": aio} if aio else {})


def offloaded(parallel: ParallelConfig) -> dict[str, dict[str, Any]]:
    """{section: its options} of what DeepSpeed keeps outside the GPU, of checked settings."""
    content = read(parallel.deepspeed_config) if parallel.deepspeed_config else {}
    zero = content.get("zero_optimization", {})
    return deepspeed_offload.chosen(zero, parallel.offload, int(parallel.strategy[-1]))


def problems(config: RunConfig) -> list[Problem]:
    """What contradicts the run, and what is not done; each key by its name."""
    path = config.parallel.deepspeed_config
    if path is None:
        return []
    try:
        content = read(path)
    except OSError as error:
        what = f"{path} can't be read: {error.strerror}"
        return [Problem(FIELD, what, "give the name of a JSON file, or leave it out")]
    except ValueError as error:
        what = f"{path} is no configuration of DeepSpeed: {error}"
        return [Problem(FIELD, what, "correct it, or leave it out")]
    remedy = "give both alike, or write auto in the file"
    found = [
        Problem(FIELD, f"{key} is {given} there, and {setting} is {own}", remedy)
        for key, given, setting, own in _compared(content, config)
        if given not in (AUTO, own)
    ]
    parallel, zero = config.parallel, content.get("zero_optimization", {})
    stage, quantized = int(parallel.strategy[-1]), config.base_bits is not None
    wrong = deepspeed_offload.wrong(zero, parallel.offload, stage, quantized)
    found += [Problem(FIELD, what, instead) for what, instead in wrong + _wrong_values(content)]
    return found + [
        Problem(FIELD, f"{key} is not done by aift-ray", instead)
        for key, instead in _not_done(content)
    ]


def _compared(content: dict[str, Any], config: RunConfig) -> list[tuple[str, Any, str, Any]]:
    """(key, its value, setting, its value) of what both name."""
    training, zero = config.training, content.get("zero_optimization", {})
    pairs: list[tuple[str, Any, str, Any]] = [
        ("train_micro_batch_size_per_gpu", content, "training.batch_size", training.batch_size),
        (
            "gradient_accumulation_steps",
            content,
            "training.gradient_accumulation_steps",
            training.gradient_accumulation_steps,
        ),
        ("gradient_clipping", content, "training.max_grad_norm", training.max_grad_norm),
        ("stage", zero, "parallel.strategy's stage", int(config.parallel.strategy[-1])),
    ]
    if isinstance(config.ray.num_workers, int):
        units = training.batch_size * training.gradient_accumulation_steps
        whole = units * config.ray.num_workers
        pairs.append(("train_batch_size", content, "the global batch", whole))
    found = [(key, where[key], name, own) for key, where, name, own in pairs if key in where]
    for kind in ("bf16", "fp16"):
        enabled = content.get(kind, {}).get("enabled", AUTO)
        if enabled not in (AUTO, training.precision == kind):
            found.append((f"{kind}.enabled", enabled, "training.precision", training.precision))
    return found + _optimizer(content.get("optimizer", {}), config)


def _optimizer(optimizer: dict[str, Any], config: RunConfig) -> list[tuple[str, Any, str, Any]]:
    training, given = config.training, optimizer.get("params", {})
    is_default = "learning_rate" not in training.model_fields_set and config.method != "full"
    own = {
        "lr": ("training.learning_rate", ADAPTER_RATE if is_default else training.learning_rate),
        "eps": ("training.adam_epsilon", training.adam_epsilon),
        "weight_decay": ("training.weight_decay", training.weight_decay),
    }
    found: list[tuple[str, Any, str, Any]] = [
        (f"optimizer.{key}", given[key], *named) for key, named in own.items() if key in given
    ]
    if "betas" in given:
        betas = [getattr(training, name) for name in _MOMENTS]
        found.append(("optimizer.betas", given["betas"], "training's", betas))
    if optimizer:
        found.append(("optimizer.type", optimizer.get("type"), "training.optimizer", "AdamW"))
    return found


def _wrong_values(content: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, remedy) of options that the engine could not be made with."""
    found = []
    for section, known in (("zero_optimization", _ZERO), ("aio", _AIO)):
        for key, value in content.get(section, {}).items():
            if key not in known or value == AUTO or (key == "overlap_comm" and value is None):
                continue
            least = 0 if key in _FROM_ZERO else 1
            if key in _SWITCHES:
                fits, wanted = isinstance(value, bool), "true or false"
            else:
                # 5e8 is a usual way to write a size
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                fits = is_number and value >= least and float(value).is_integer()
                wanted = f"a whole number of {least} or more"
            if not fits:
                found.append((f"{section}.{key} is {value!r}", f"write {wanted}"))
    return found


def _not_done(content: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, remedy) of what the run does not do."""
    zero = content.get("zero_optimization", {})
    known = {
        "zero_optimization",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "bf16",
        "fp16",
        "optimizer",
        "aio",
        *_NO_EFFECT,
    }
    remedies = {"scheduler": "leave it out: training.lr_scheduler counts"}
    off = (False, None, {"device": "none"})
    unknown = [key for key, value in content.items() if key not in known and value not in off]
    unknown += [
        f"zero_optimization.{key}"
        for key, value in zero.items()
        if key not in ("stage", *_ZERO, *deepspeed_offload.SECTIONS, *_NO_EFFECT)
        and value not in off
    ]
    unknown += [f"aio.{key}" for key in content.get("aio", {}) if key not in _AIO]
    params = content.get("optimizer", {}).get("params", {})
    unknown += [f"optimizer.params.{key}" for key in params if key not in _PARAMS]
    return [(key, remedies.get(key.rpartition(".")[2], "leave it out")) for key in unknown]
