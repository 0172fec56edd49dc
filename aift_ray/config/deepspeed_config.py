"""A DeepSpeed configuration file of a user: what of it counts, and what contradicts the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aift_ray.config import deepspeed_file, deepspeed_offload, deepspeed_schedule
from aift_ray.config.deepspeed_file import Wrong, shown
from aift_ray.config.deepspeed_keys import AIO_OPTIONS, OPTIMIZER, PARAM, ZERO_OPTIONS, checked
from aift_ray.config.deepspeed_schedule import differing
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.parallel_config import ParallelConfig
    from aift_ray.config.run_config import RunConfig

FIELD = "parallel.deepspeed_config"
__all__ = ["FIELD", "OPTIMIZER", "PARAM"]


def engine_options(parallel: ParallelConfig) -> dict[str, Any]:
    """What the engine is configured with, of the settings and their file, which was checked."""
    content = _usable(parallel)
    zero = content.get("zero_optimization", {})
    aio = content.get("aio", zero.get("aio", {}))
    stage = int(parallel.strategy[-1])
    options = zero_options(parallel)
    options |= deepspeed_offload.chosen(zero, parallel.offload, stage)
    found: dict[str, Any] = {"zero_optimization": options | {"stage": stage}}
    aio = {key: aio[key] for key in AIO_OPTIONS if aio.get(key) is not None}
    return found | ({"aio": aio} if aio else {})


def zero_options(parallel: ParallelConfig) -> dict[str, Any]:
    """What the file says of ZeRO's communication and buffers, without "auto"."""
    zero = _usable(parallel).get("zero_optimization", {})
    return {key: zero[key] for key in ZERO_OPTIONS if zero.get(key) is not None}


def offloaded(parallel: ParallelConfig) -> dict[str, dict[str, Any]]:
    """{section: its options} of what DeepSpeed keeps outside the GPU; none of other backends."""
    if not parallel.by_deepspeed or parallel.strategy not in ("zero1", "zero2", "zero3"):
        return {}
    zero = _usable(parallel).get("zero_optimization", {})
    return deepspeed_offload.chosen(zero, parallel.offload, int(parallel.strategy[-1]))


def unwritable(parallel: ParallelConfig) -> list[Problem]:
    """Folders of device nvme in which this machine can't keep files."""
    found = []
    for name, options in offloaded(parallel).items():
        if options["device"] == "nvme" and options.get("nvme_path"):
            reason = deepspeed_offload.unwritable(options["nvme_path"])
            if reason:
                what = f"zero_optimization.{name}.nvme_path is {shown(options['nvme_path'])}, and "
                what += f"no file can be written there ({reason})"
                remedy = "name a folder on a local disk in which you may write"
                found.append(Problem(FIELD, what, remedy))
    return found


def unreadable(parallel: ParallelConfig) -> Problem | None:
    """Why the file can't be read, or is no configuration; None: it is one."""
    path = parallel.deepspeed_config
    if path is None:
        return None
    try:
        deepspeed_file.read(path)
    except OSError as error:
        what = f"{path} can't be read: {error.strerror}"
        return Problem(FIELD, what, "give the name of a JSON file, or leave it out")
    except ValueError as error:
        what = f"{path} is no configuration of DeepSpeed: {error}"
        return Problem(FIELD, what, "correct it, or leave it out")
    return None


def fill(config: RunConfig) -> None:
    """Give a run the learning-rate schedule of its file, which contradicts nothing."""
    if config.parallel.deepspeed_config:
        deepspeed_schedule.fill(config.training, _usable(config.parallel).get("scheduler", {}))


def problems(config: RunConfig, workers: int | None = None) -> list[Problem]:
    """What is wrong with the file, contradicts the run, or is not done; each key by its name.

    Args:
        workers: the largest number of them; None: what `ray.num_workers` says.
    """
    path = config.parallel.deepspeed_config
    if path is None:
        return []
    unread = unreadable(config.parallel)
    if unread:
        return [unread]
    content, wrong = deepspeed_file.read(path)
    usable, misfits = checked(content)
    wrong += [*misfits, *_compared(usable, config, workers)]
    parallel, zero = config.parallel, usable.get("zero_optimization", {})
    if "aio" in usable and "aio" in zero:
        wrong.append(("zero_optimization.aio is there as aio too", "keep one of them"))
    if parallel.strategy in ("zero1", "zero2", "zero3"):
        stage, quantized = int(parallel.strategy[-1]), config.base_bits is not None
        wrong += deepspeed_offload.wrong(zero, parallel.offload, stage, quantized)
    found = [Problem(FIELD, what, remedy) for what, remedy in wrong]
    return found + deepspeed_schedule.beside(usable.get("scheduler"), config.training)


def _usable(parallel: ParallelConfig) -> dict[str, Any]:
    """What of the file has the right types; {} where there is none that can be read."""
    if parallel.deepspeed_config is None:
        return {}
    try:
        content, _ = deepspeed_file.read(parallel.deepspeed_config)
    except (OSError, ValueError):
        return {}
    return checked(content)[0]


def _compared(content: dict[str, Any], config: RunConfig, workers: int | None) -> Iterator[Wrong]:
    """What both the file and the settings name, where they differ."""
    training = config.training
    for key, name, own in (
        ("train_micro_batch_size_per_gpu", "batch_size", training.batch_size),
        (
            "gradient_accumulation_steps",
            "gradient_accumulation_steps",
            training.gradient_accumulation_steps,
        ),
        ("gradient_clipping", "max_grad_norm", training.max_grad_norm),
    ):
        if content.get(key) not in (None, own):
            yield differing(key, content[key], f"training.{name}", own)
    stage, strategy = content.get("zero_optimization", {}).get("stage"), config.parallel.strategy
    if stage is not None and strategy != f"zero{stage:.0f}":
        flag = f"--strategy zero{stage:.0f}" if stage else "--strategy ddp without this file"
        yield differing("zero_optimization.stage", stage, "parallel.strategy", strategy, flag)
    yield from _global_batch(content.get("train_batch_size"), config, workers)
    yield from _precision(content, training.precision, training.fp16)
    yield from deepspeed_schedule.optimizer(content.get("optimizer"), config)
    yield from deepspeed_schedule.scheduler(content.get("scheduler"), config)


def _global_batch(given: float | None, config: RunConfig, workers: int | None) -> Iterator[Wrong]:
    if workers is None and config.ray.num_workers is not None:
        workers = config.worker_range(0)[1]
    if given is None or workers is None:
        return
    training = config.training
    own = training.batch_size * training.gradient_accumulation_steps * workers
    if given != own:
        flags = "other --training.batch_size, --training.gradient_accumulation_steps or "
        yield differing("train_batch_size", given, "the global batch", own, f"{flags}--num-workers")


def _precision(content: dict[str, Any], precision: str, mixed: bool) -> Iterator[Wrong]:
    """What a file's bf16 and fp16 say, where the run computes otherwise."""
    for kind in ("bf16", "fp16"):
        enabled = content.get(kind, {}).get("enabled")
        # auto is bf16 on GPUs
        can_be = precision == kind or (kind == "bf16" and precision == "auto" and mixed)
        if enabled and precision != kind:
            flag = f"--training.precision {kind}"
            if kind == "fp16":
                flag = "--training.precision fp16 --parallel.backend fsdp2 without this file"
            yield differing(f"{kind}.enabled", True, "training.precision", precision, flag)
        elif enabled is False and can_be:
            flag = "--training.precision fp32"
            yield differing(f"{kind}.enabled", False, "training.precision", precision, flag)
