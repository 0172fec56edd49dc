"""The keys of a DeepSpeed configuration: which are known here, and what each may be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aift_ray.config.deepspeed_file import AUTO, Wrong, shown


@dataclass(frozen=True)
class Kind:
    """What a key may be, beside "auto".

    Attributes:
        words: the same, for people.
        done: whether it acts here, or changes nothing; else it must be off.
        auto: whether "auto" is filled in.
    """

    words: str
    fits: Callable[[Any], bool]
    done: bool = True
    auto: bool = True


# sizes are numbers of 64 bits
_MOST = 2.0**63


def _number(value: object, least: float, most: float = _MOST) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and least <= value <= most  # type: ignore[operator]


def _whole(least: int, most: float = _MOST) -> Kind:
    # 5e8 is a usual way to write a size
    words = f"a whole number of {least} or more" if most == _MOST else f"{least} to {most:g}"
    return Kind(words, lambda value: _number(value, least, most) and float(value).is_integer())


def _from(least: float, words: str) -> Kind:
    return Kind(words, lambda value: _number(value, least))


def _is_off(value: object) -> bool:
    if isinstance(value, dict):
        return value.get("enabled", True) is False or all(map(_is_off, value.values()))
    return value is None or value is False


_SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
_OPEN_SWITCH = Kind("true, false or null", lambda value: value is None or isinstance(value, bool))
_TEXT = Kind("a text", lambda value: isinstance(value, str) and value.isprintable())
_NAME = Kind("a name", lambda value: _TEXT.fits(value) and value != AUTO, auto=False)
_FOLDER = Kind("a folder", lambda value: value is None or _NAME.fits(value), auto=False)
_WORD = Kind("none, cpu or nvme", lambda value: value in ("none", "cpu", "nvme"))
_SIZE, _ANY_SIZE = _whole(1), _whole(0)
_NOT_NEGATIVE = _from(0, "a number of 0 or more")
_BETAS = Kind(
    "a list of two numbers from 0 to below 1",
    lambda value: (
        isinstance(value, list) and len(value) == 2 and all(_number(b, 0, 1 - 1e-12) for b in value)
    ),
)
_OFF = Kind("", _is_off, done=False, auto=False)
# its numbers count where one of its switches is on
_ALL_OFF = Kind(
    "", lambda v: v is None or (isinstance(v, dict) and True not in v.values()), False, False
)
_ON = Kind("", lambda value: value is True, done=False, auto=False)
_ONE = Kind("1", lambda value: _number(value, 1, 1), done=False)
_NONE = Kind("0", lambda value: _number(value, 0, 0), done=False)
# what is trained is held and reduced so
_FP32 = Kind("", lambda value: value in (None, "fp32"), done=False)

Keys = Mapping[str, "Kind | Keys"]
_OFFLOAD = {"device": _WORD, "nvme_path": _FOLDER, "buffer_count": _SIZE, "pin_memory": _SWITCH}
OPTIMIZER, PARAM = "offload_optimizer", "offload_param"
# what the engine gets as it is
ZERO_OPTIONS: dict[str, Kind] = {
    "overlap_comm": _OPEN_SWITCH,
    "contiguous_gradients": _SWITCH,
    "reduce_scatter": _SWITCH,
    "reduce_bucket_size": _SIZE,
    "allgather_partitions": _SWITCH,
    "allgather_bucket_size": _ANY_SIZE,
    "round_robin_gradients": _SWITCH,
    "sub_group_size": _ANY_SIZE,
    "stage3_prefetch_bucket_size": _ANY_SIZE,
    "stage3_param_persistence_threshold": _ANY_SIZE,
    "stage3_model_persistence_threshold": _ANY_SIZE,
    "stage3_max_live_parameters": _ANY_SIZE,
    "stage3_max_reuse_distance": _ANY_SIZE,
    "memory_efficient_linear": _SWITCH,
    "log_trace_cache_warnings": _SWITCH,
}
AIO_OPTIONS: dict[str, Kind] = {
    "block_size": _SIZE,
    "queue_depth": _SIZE,
    "intra_op_parallelism": _SIZE,
    "single_submit": _SWITCH,
    "overlap_events": _SWITCH,
}
# DeepSpeed does not read thread_count any more
_AIO: Keys = {**AIO_OPTIONS, "use_gds": _OFF, "thread_count": _ONE}
# sections and switches of DeepSpeed that are taken where they are off
_NOT_DONE = (
    "amp autotuning comms_logger compile compression_training csv_monitor "
    "curriculum_learning data_efficiency disable_allgather dump_state eigenvalue elasticity "
    "flops_profiler hybrid_engine memory_breakdown prescale_gradients progressive_layer_drop "
    "sparse_gradients tensorboard torch_autocast wall_clock_breakdown wandb "
    "zero_force_ds_cpu_optimizer"
)
KEYS: Keys = {
    **dict.fromkeys(_NOT_DONE.split(), _OFF),
    "activation_checkpointing": _ALL_OFF,
    "train_batch_size": _SIZE,
    "train_micro_batch_size_per_gpu": _SIZE,
    "gradient_accumulation_steps": _SIZE,
    "gradient_clipping": _NOT_NEGATIVE,
    # model folders are always whole, the optimizer is torch's, and lines of progress are our own
    "steps_per_print": _SIZE,
    "zero_allow_untested_optimizer": _SWITCH,
    "communication_data_type": _FP32,
    "data_types": {"grad_accum_dtype": _FP32},
    "bf16": {
        "enabled": _SWITCH,
        "immediate_grad_update": _SWITCH,
        "check_grad_overflow": _SWITCH,
        "bf16_master_weights_and_grads": _OFF,
        "bf16_optimizer_states": _OFF,
    },
    # scales of a loss that is not scaled
    "fp16": {
        "enabled": _SWITCH,
        "auto_cast": _SWITCH,
        "loss_scale": _NOT_NEGATIVE,
        "initial_scale_power": _ANY_SIZE,
        "loss_scale_window": _SIZE,
        "hysteresis": _SIZE,
        "consecutive_hysteresis": _SWITCH,
        "min_loss_scale": _NOT_NEGATIVE,
        "fp16_master_weights_and_grads": _OFF,
    },
    "optimizer": {
        "type": _NAME,
        "params": {
            "lr": _NOT_NEGATIVE,
            "betas": _BETAS,
            "eps": _NOT_NEGATIVE,
            "weight_decay": _NOT_NEGATIVE,
            "torch_adam": _SWITCH,
            "adam_w_mode": _SWITCH,
        },
    },
    "scheduler": {
        "type": _NAME,
        "params": {
            "warmup_min_lr": _NOT_NEGATIVE,
            "warmup_max_lr": _NOT_NEGATIVE,
            "warmup_num_steps": _SIZE,
            "warmup_type": _TEXT,
            "total_num_steps": _SIZE,
            "last_batch_iteration": _whole(-1),
        },
    },
    "zero_optimization": {
        "stage": _whole(0, 3),
        **ZERO_OPTIONS,
        "stage3_gather_16bit_weights_on_model_save": _SWITCH,
        "stage3_gather_fp16_weights_on_model_save": _SWITCH,
        "load_from_fp32_weights": _SWITCH,
        "elastic_checkpoint": _SWITCH,
        "ignore_unused_parameters": _ON,
        "legacy_stage1": _OFF,
        "use_multi_rank_bucket_allreduce": _ON,
        "compute_grad_norm": _ON,
        "override_module_apply": _ON,
        "enable_sanity_checks": _OFF,
        "parameter_alignment": _OFF,
        "pipeline_loading_checkpoint": _OFF,
        "save_muon_momentum_buffer_in_memory": _OFF,
        "zenflow": _OFF,
        "stage3_module_granularity_threshold": _NONE,
        "stage3_allgather_sequential": _OFF,
        "stage3_use_all_reduce_for_fetch_params": _OFF,
        "cpu_offload": _OFF,
        "cpu_offload_use_pin_memory": _OFF,
        "cpu_offload_param": _OFF,
        "zero_quantized_weights": _OFF,
        "zero_quantized_nontrainable_weights": _OFF,
        "zero_quantized_gradients": _OFF,
        "zero_hpz_partition_size": _ONE,
        OPTIMIZER: {
            **_OFFLOAD,
            "pipeline_read": _SWITCH,
            "pipeline_write": _SWITCH,
            "fast_init": _OFF,
            "ratio": _ONE,
            "super_offload": _OFF,
            # of an Adam that is not used
            "cpuadam_cores_perc": _NOT_NEGATIVE,
        },
        PARAM: {**_OFFLOAD, "buffer_size": _SIZE, "max_in_cpu": _ANY_SIZE},
        # where the documentation of transformers has it, and DeepSpeed itself refuses it
        "aio": _AIO,
    },
    "aio": _AIO,
}
# keys of zero_optimization that DeepSpeed takes without stage3_ too
_STAGE_3 = "stage3_"
_REMEDIES = {
    "bfloat16": "write bf16",
    "cpu_offload": f'write "{OPTIMIZER}": {{"device": "cpu"}}',
    "cpu_offload_param": f'write "{PARAM}": {{"device": "cpu"}}',
    "thread_count": "write intra_op_parallelism",
}


def checked(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
    """What of a file's content can be used, and what can't, with a remedy.

    Returns:
        the known keys, None for "auto" and for values of wrong types, and what is wrong.
    """
    found: list[Wrong] = []
    return _section(content, KEYS, "", found), found


def _section(content: Mapping[str, Any], keys: Keys, name: str, found: list[Wrong]) -> Any:
    usable = {}
    for given, value in content.items():
        path, key = f"{name}.{given}" if name else given, given
        if key not in keys and _STAGE_3 + key in keys:
            key = _STAGE_3 + key
        kind = keys.get(key)
        if kind is None:
            found.append((f"{path} is not done by aift-ray", _near(key, keys)))
        elif key in usable:
            found.append((f"{path} is there as {key} too", "keep one of them"))
        elif isinstance(kind, Kind):
            wrong = [] if value == AUTO and kind.auto else list(_misfit(path, value, kind))
            found += wrong
            usable[key] = None if wrong or value == AUTO else value
        elif isinstance(value, dict):
            usable[key] = _section(value, kind, path, found)
        elif value is not None:
            what = f"{path} is {shown(value)}, and an object is expected"
            found.append((what, f'write {{"{next(iter(kind))}": ...}}, or leave it out'))
    return usable


def _misfit(path: str, value: object, kind: Kind) -> Iterator[Wrong]:
    if kind.fits(value):
        return
    if kind.done:
        remedy = f'write such a value, or "{AUTO}"' if kind.auto else "write one"
        yield f"{path} is {shown(value)}, and {kind.words} is expected", remedy
    else:
        remedy = _REMEDIES.get(path.rpartition(".")[2], "leave it out")
        yield f"{path} is {shown(value)}, which is not done by aift-ray", remedy


def _near(key: str, keys: Keys) -> str:
    if key in _REMEDIES:
        return _REMEDIES[key]
    if keys is not KEYS and key in KEYS:
        return "move it to the top level of the file"
    near = difflib.get_close_matches(key, keys, 1, 0.75)
    return f"did you mean {near[0]}? else leave it out" if near else "leave it out"
