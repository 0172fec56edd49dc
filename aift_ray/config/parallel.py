"""How the model is spread over workers, and what of it is not possible."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from aift_ray.config.section import Positive, Section, memory_bytes, memory_size, setting
from aift_ray.errors import Problem

_NOT_YET = {
    "model_parallel": "a model is not yet laid out over several devices of one process",
    "pipeline": "blocks are not yet dealt out over workers",
}


class ParallelConfig(Section):
    """How the model is spread over workers."""

    strategy: Literal[
        "ddp", "fsdp", "zero1", "zero2", "zero3", "model_parallel", "pipeline", "tensor", "auto"
    ] = setting(
        "ddp",
        "ddp: a whole model on each worker; fsdp (= zero3): a share of it; zero2: shares of "
        "gradients and optimizer state; zero1: of optimizer state; tensor: a share of every matrix "
        "and its work; auto: the first that fits; the others: not yet",
    )
    max_memory_per_gpu: dict[int, str] | None = setting(
        None, "memory a device for strategy model_parallel, {0: 22GB}; not with ddp"
    )
    pipeline_parallel_size: Positive = setting(1, "stages of strategy pipeline; 1 with ddp")
    tensor_parallel_size: Positive = setting(
        1, "workers that split each matrix, with strategy tensor; 1: all of them"
    )

    offload: bool = setting(
        False, "fsdp and zero3 on GPUs: weights, gradients and optimizer state in host memory"
    )
    gpu_memory: str | None = setting(
        None, "memory that a run may take of each GPU, 22GB; default: all; also without GPUs"
    )

    @field_validator("gpu_memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)

    @property
    def gpu_bytes(self) -> int | None:
        """`gpu_memory` in bytes."""
        return None if self.gpu_memory is None else memory_bytes(self.gpu_memory)

    @property
    def shares(self) -> bool:
        """Whether something of the model is shared out over the workers."""
        return self.strategy in ("fsdp", "zero1", "zero2", "zero3")

    @property
    def apart(self) -> int:
        """Workers that hold one model together, each a part of it."""
        return self.tensor_parallel_size if self.strategy == "tensor" else 1

    def misfits(self, least: int, most: int) -> list[Problem]:
        """What the strategy can't do with `least` to `most` workers."""
        strategy, size, found = self.strategy, self.apart, []
        if self.divides and most < 2:
            what = f"{strategy} shares the model out over workers, and there is one"
            remedy = "give --num-workers 2 or more, or use --strategy ddp"
            found.append(Problem("parallel.strategy", what, remedy))
        if strategy == "tensor" and least != most:
            what = f"{least}:{most} is elastic, and {strategy} takes a fixed number"
            remedy = "give one number, or use --strategy fsdp"
            found.append(Problem("ray.num_workers", what, remedy))
        elif strategy == "tensor" and most % size:
            what = f"{most} is not a multiple of parallel.tensor_parallel_size {size}"
            remedy = f"give --num-workers {-(-most // size) * size}, or a size that divides {most}"
            found.append(Problem("ray.num_workers", what, remedy))
        return found

    @property
    def divides(self) -> bool:
        """Whether each worker holds a part of each weight."""
        return self.shares or self.strategy == "tensor"

    def contradictions(self, base_bits: int | None) -> list[Problem]:
        """What can't be had together, with a base model of `base_bits` bits if quantized."""
        found, strategy = [], self.strategy
        if strategy in _NOT_YET:
            what = f"{strategy} is not available in this version: {_NOT_YET[strategy]}"
            remedy = "use --strategy fsdp, with --method qlora where memory is short"
            found.append(Problem("parallel.strategy", what, remedy))
        if self.divides and base_bits == 8:
            what = f"{strategy} can't share out 8 bits: their scales are kept beside the weights"
            remedy = "use 4 bits (--lora.qlora_4bit true), or --strategy ddp"
            found.append(Problem("lora.qlora_4bit", what, remedy))
        if self.offload and strategy not in ("fsdp", "zero3"):
            what = f"needs strategy fsdp or zero3, not {strategy}"
            found.append(Problem("parallel.offload", what, "use --strategy fsdp"))
        if self.offload and base_bits:
            what = f"can't move a base model of {base_bits} bits: its scales stay on the GPU"
            found.append(Problem("parallel.offload", what, "leave it off, or use --method lora"))
        if self.max_memory_per_gpu is not None:
            what = f"needs strategy model_parallel, not {strategy}"
            found.append(Problem("parallel.max_memory_per_gpu", what))
        for name in ("pipeline_parallel_size", "tensor_parallel_size"):
            if getattr(self, name) != 1 and name != f"{strategy}_parallel_size":
                found.append(Problem(f"parallel.{name}", f"must be 1 with strategy {strategy}"))
        return found
