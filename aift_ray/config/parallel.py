"""How the model is spread over workers, and what of it is not possible."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from aift_ray.config.section import Positive, Section, setting
from aift_ray.errors import Problem

_NOT_YET = {"tensor": "matrices are not yet split over workers"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(GB|GiB|MB|MiB)")
_UNITS = {"GB": 1e9, "GiB": 2.0**30, "MB": 1e6, "MiB": 2.0**20}


class ParallelConfig(Section):
    """How the model is spread over workers."""

    strategy: Literal[
        "ddp", "fsdp", "zero1", "zero2", "zero3", "model_parallel", "pipeline", "tensor"
    ] = setting(
        "ddp",
        "ddp: a whole model on each worker; fsdp (= zero3): a share of it; zero2: shares of "
        "gradients and optimizer state; zero1: of optimizer state; model_parallel: layers over "
        "the devices of one worker; pipeline: blocks over workers; tensor: not yet",
    )
    max_memory_per_gpu: dict[int, str] | None = setting(
        None, "memory of each GPU for model_parallel, {0: 22GB} (as a flag 0=22GB); default: 90%"
    )
    pipeline_parallel_size: Positive = setting(
        1, "workers that hold a model together, with strategy pipeline"
    )
    tensor_parallel_size: Positive = setting(1, "shards of strategy tensor; 1 with ddp")
    spill_to_cpu: bool = setting(
        False, "with model_parallel: layers that fit no device lie and compute in the host, slowly"
    )
    pipeline_schedule: Literal["1f1b", "gpipe", "interleaved"] = setting(
        "1f1b", "order of a pipeline's micro-batches; interleaved: two stages a worker"
    )
    pipeline_microbatches: Positive | None = setting(
        None, "micro-batches of a pipeline's step; default: gradient_accumulation_steps"
    )

    @field_validator("max_memory_per_gpu")
    @classmethod
    def _sizes(cls, value: dict[int, str] | None) -> dict[int, str] | None:
        wrong = [n for n, size in (value or {}).items() if n < 0 or not _SIZE.fullmatch(size)]
        if wrong or value == {}:
            raise ValueError("give numbers of GPUs and sizes, for example {0: 22GB, 1: 22GB}")
        return value

    @property
    def limits(self) -> dict[int, int]:
        """Bytes that each device may take, of strategy model_parallel."""
        sizes = {n: _SIZE.fullmatch(size) for n, size in (self.max_memory_per_gpu or {}).items()}
        return {n: int(float(m[1]) * _UNITS[m[2]]) for n, m in sorted(sizes.items()) if m}

    @property
    def gpus_a_worker(self) -> int:
        """GPUs that each worker takes, where there are any."""
        return max(self.limits, default=0) + 1

    @property
    def stages(self) -> int:
        """Parts in which a model's blocks are dealt out to workers."""
        if self.strategy != "pipeline":
            return 1
        return self.pipeline_parallel_size * (2 if self.pipeline_schedule == "interleaved" else 1)

    @property
    def apart(self) -> int:
        """Workers that hold one model together, each other blocks of it."""
        return self.pipeline_parallel_size if self.strategy == "pipeline" else 1

    @property
    def shares(self) -> bool:
        """Whether something of the model is shared out over the workers."""
        return self.strategy in ("fsdp", "zero1", "zero2", "zero3")

    def contradictions(self, base_bits: int | None) -> list[Problem]:
        """What can't be had together, with a base model of `base_bits` bits if quantized."""
        found, strategy = [], self.strategy
        if strategy in _NOT_YET:
            what = f"{strategy} is not available in this version: {_NOT_YET[strategy]}"
            remedy = "use --strategy fsdp, with --method qlora where memory is short"
            found.append(Problem("parallel.strategy", what, remedy))
        if self.shares and base_bits == 8:
            what = f"{strategy} can't share out 8 bits: their scales are kept beside the weights"
            remedy = "use 4 bits (--lora.qlora_4bit true), or --strategy ddp"
            found.append(Problem("lora.qlora_4bit", what, remedy))
        owners = {
            "max_memory_per_gpu": "model_parallel",
            "spill_to_cpu": "model_parallel",
            "pipeline_parallel_size": "pipeline",
            "pipeline_schedule": "pipeline",
            "pipeline_microbatches": "pipeline",
            "tensor_parallel_size": "tensor",
        }
        for name, owner in owners.items():
            default = type(self).model_fields[name].default
            if strategy != owner and getattr(self, name) != default:
                found.append(Problem(f"parallel.{name}", f"needs strategy {owner}, not {strategy}"))
        if strategy == "pipeline" and self.pipeline_parallel_size < 2:
            what = "must be 2 or more with strategy pipeline: a stage is a worker"
            remedy = "give --parallel.pipeline_parallel_size 2, or use --strategy ddp"
            found.append(Problem("parallel.pipeline_parallel_size", what, remedy))
        if self.spill_to_cpu and self.max_memory_per_gpu is None and strategy == "model_parallel":
            what = "needs parallel.max_memory_per_gpu: what is too much is not known without it"
            found.append(Problem("parallel.spill_to_cpu", what))
        return found

    def misfits(self, least: int, most: int) -> list[Problem]:
        """What the strategy can't do with `least` to `most` workers."""
        strategy, size, found = self.strategy, self.apart, []
        if self.shares and most < 2:
            what = f"{strategy} shares the model out over workers, and there is one"
            remedy = "give --num-workers 2 or more, or use --strategy ddp"
            found.append(Problem("parallel.strategy", what, remedy))
        if strategy in ("pipeline", "model_parallel") and least != most:
            what = f"{least}:{most} is elastic, and {strategy} takes a fixed number"
            remedy = f"give --num-workers {size}, or use --strategy fsdp"
            found.append(Problem("ray.num_workers", what, remedy))
        elif strategy == "model_parallel" and most != 1:
            what = f"{most} workers; model_parallel is one, which holds all devices"
            remedy = "leave --num-workers out, or use --strategy pipeline or fsdp"
            found.append(Problem("ray.num_workers", what, remedy))
        elif strategy == "pipeline" and most % size:
            what = f"{most} is not a multiple of parallel.pipeline_parallel_size {size}"
            remedy = f"give --num-workers {max(1, most // size) * size}, or a size that divides it"
            found.append(Problem("ray.num_workers", what, remedy))
        return found
