"""Memory in use, and what to tell a user whose device ran out of it."""

from __future__ import annotations

import resource
import sys

import torch

from aift_ray.engine.worker_run import Run
from aift_ray.models.model_stats import Measured, measured
from aift_ray.planning.candidates import remedy
from aift_ray.planning.memory_estimate import Workload, memory


def out_of_memory(run: Run, error: BaseException, place: str = "") -> str:
    """The peak, the computed parts, and the nearest setting with the same global batch.

    Args:
        place: where it was, after the trial of the longest micro-batch went well; "": in the trial.
    """
    device = run.group.device
    what = f"{place} does" if place else "the longest micro-batch does"
    lines = [f"{what} not fit into the memory of {device}{_usage(device)}"]
    indices = run.plan.longest_micro_batch()
    tokens = int(run.rows.lengths[indices].sum())
    parts = _parts(run, tokens)
    batch = "the longest micro-batch, of" if place else "its"
    lines.append(f"computed for {batch} {len(indices)} rows of {tokens} tokens: {parts}")
    lines.append(f"try {remedy(run.config)}")
    return "\n  ".join([*lines, _said(error)])


def out_of_memory_before_steps(device: torch.device, error: BaseException, place: str) -> str:
    """The same of a model that is being built: what was computed fits, or it were refused."""
    lines = [f"{place} does not fit into the memory of {device}{_usage(device)}"]
    lines.append("another process may hold a part of it (nvidia-smi): end that one, or give what")
    lines.append("is left, for example --parallel.gpu_memory 16GB, for a plan that fits into it")
    return "\n  ".join([*lines, _said(error)])


def _usage(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    reserved, held = device_memory_gb(device)
    return (
        f": {peak / 2**30:.1f} GiB were in use of {total / 2**30:.1f} GiB"
        f", {reserved:.1f} GiB reserved, and the device holds {held:.1f} GiB"
    )


def _said(error: BaseException) -> str:
    return f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _parts(run: Run, tokens: int) -> str:
    model = measured(run.job.location, run.config)
    return memory(model.shape, work_of(run, model, tokens)).parts


def work_of(run: Run, model: Measured, tokens: int) -> Workload:
    """What this worker does in a micro-batch of `tokens` tokens."""
    config, divided = run.config, run.group.context_parallel_size
    return Workload(
        config.method,
        config.lora.r,
        -(-tokens // divided),
        torch.finfo(run.precision.compute).bits // 8,
        config.training.gradient_checkpointing,
        config.base_bits,
        config.parallel.strategy,
        run.group.model_parallel_size
        if run.group.model_parallel_size > 1
        else run.group.world_size,
        model.whole,
        run.group.model_parallel_size,
        config.parallel.offload,
        config.training.optimizer,
        dropout=config.lora.lora_dropout > 0,
        gpu=run.group.device.type == "cuda",
        row_tokens=tokens if divided > 1 else 0,
        reference=config.grpo.beta > 0 and config.method == "full",
        by_deepspeed=config.parallel.by_deepspeed,
        rounded=config.training.bf16_stochastic_round,
        selective=config.training.activation_checkpointing == "selective",
        activations_in_host=config.training.activation_offloading,
    )


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on its GPUs, else resident in the host."""
    if device.type == "cuda":
        numbers = range(torch.cuda.device_count())
        return sum(torch.cuda.max_memory_allocated(number) for number in numbers) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_memory_gb(device: torch.device) -> tuple[float, float]:
    """GiB that torch has reserved at most of this process's GPUs, and that these hold now, with
    CUDA's context, NCCL's buffers and other processes; 0 without GPUs."""
    if device.type != "cuda":
        return 0.0, 0.0
    numbers = range(torch.cuda.device_count())
    reserved = sum(torch.cuda.max_memory_reserved(number) for number in numbers)
    held = sum(total - free for free, total in map(torch.cuda.mem_get_info, numbers))
    return reserved / 2**30, held / 2**30
