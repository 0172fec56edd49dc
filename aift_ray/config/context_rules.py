"""What rows that are divided over workers (`parallel.context_parallel_size`) can't be had with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.run_config import RunConfig

FIELD = "parallel.context_parallel_size"
STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")


def contradictions(config: RunConfig) -> list[Problem]:
    """Settings that conflict with rows that are divided over workers."""
    parallel, found = config.parallel, []
    if parallel.context_parallel_size == 1:
        return []
    if parallel.strategy not in STRATEGIES:
        what = f"divides rows with strategy {', '.join(STRATEGIES)} only, not {parallel.strategy}"
        found.append(Problem(FIELD, what, "use --strategy ddp or fsdp"))
    if parallel.by_deepspeed:
        what = "divides rows with FSDP2 only, and parallel.backend is deepspeed"
        found.append(Problem(FIELD, what, "use --parallel.backend fsdp2"))
    if parallel.offload:
        what = "does not divide rows whose weights are in host memory (parallel.offload)"
        found.append(Problem(FIELD, what, "leave one of them off"))
    if config.training.compile:
        what = "compiles the attention of whole rows, and context parallel divides them"
        found.append(Problem("training.compile", what, "leave one of them off"))
    if config.objective != "sft":
        what = f"divides the rows of objective sft only, and the objective is {config.objective}"
        found.append(Problem(FIELD, what, "leave it out"))
    if config.data.packing == "false":
        what = "divides packed rows, and data.packing false pads them"
        found.append(Problem(FIELD, what, "use --data.packing concat or fill"))
    return found
