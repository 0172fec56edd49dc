"""Memory in use, and what to tell a user whose device ran out of it."""

from __future__ import annotations

import resource
import sys

import torch

from aift_ray.engine.step_plan import longest_tokens
from aift_ray.engine.worker_run import Run
from aift_ray.models.model_stats import Measured, measured
from aift_ray.planning.candidates import Candidate, fewer_answers, remedy
from aift_ray.planning.memory_estimate import Memory, Workload, phases
from aift_ray.planning.run_workload import answers_of, workload


def out_of_memory(run: Run, error: BaseException, place: str = "") -> str:
    """The peak, the computed parts, and the nearest setting with the same global batch.

    Args:
        place: where it was, after the trial of the longest micro-batch went well; "": in the trial.
    """
    device = run.group.device
    what = f"{place} does" if place else "the longest micro-batch does"
    lines = [f"{what} not fit into the memory of {device}{_usage(device)}"]
    indices = run.plan.longest_micro_batch()
    tokens = longest_tokens(run.config, run.rows, run.plan, run.job.padded)
    needs = _phases(run, tokens)
    batch = "the longest micro-batch, of" if place else "its"
    parts = needs.pop("step").parts
    lines.append(f"computed for {batch} {len(indices)} rows of {tokens} tokens: {parts}")
    lines.append(f"try {remedy(run.config)}")
    for phase in ("evaluate", "generate"):
        if phase in needs and (needs[phase].cache or needs[phase].engine):
            lines.append(f"computed while it {phase}s: {needs[phase].parts}")
            lines.append(f"try {fewer_answers(run.config)}")
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


def _phases(run: Run, tokens: int) -> dict[str, Memory]:
    """What each phase needs, of the stage that needs the most in it."""
    model = measured(run.job.location, run.config)
    stages = phases(model.shape, work_of(run, model, tokens))
    return {name: max((s[name] for s in stages), key=lambda m: m.total) for name in stages[0]}


def work_of(run: Run, model: Measured, tokens: int) -> Workload:
    """What this worker does in a micro-batch of `tokens` tokens."""
    config, workers = run.config, run.group.world_size
    way = Candidate(config.trained_as, config.parallel.strategy, config.parallel.offload)
    answers = answers_of(config, workers, *run.job.answered, run.job.support.batched)
    width = torch.finfo(run.precision.compute).bits // 8
    gpu = run.group.device.type == "cuda"
    sizes = (model.shape, tokens, workers, width, model.whole, answers, gpu)
    return workload(config, way, *sizes)


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
