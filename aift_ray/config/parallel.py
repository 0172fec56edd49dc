"""How the model is spread over workers, and what of it is not possible."""

from __future__ import annotations

from typing import Literal

from aift_ray.config.section import Positive, Section, setting
from aift_ray.errors import Problem

_NOT_YET = {
    "model_parallel": "a model is not yet laid out over several devices of one process",
    "pipeline": "blocks are not yet dealt out over workers",
    "tensor": "matrices are not yet split over workers",
}


class ParallelConfig(Section):
    """How the model is spread over workers."""

    strategy: Literal[
        "ddp", "fsdp", "zero1", "zero2", "zero3", "model_parallel", "pipeline", "tensor"
    ] = setting(
        "ddp",
        "ddp: a whole model on each worker; fsdp (= zero3): a share of it; zero2: shares of "
        "gradients and optimizer state; zero1: of optimizer state; the others: not yet",
    )
    max_memory_per_gpu: dict[int, str] | None = setting(
        None, "memory a device for strategy model_parallel, {0: 22GB}; not with ddp"
    )
    pipeline_parallel_size: Positive = setting(1, "stages of strategy pipeline; 1 with ddp")
    tensor_parallel_size: Positive = setting(1, "shards of strategy tensor; 1 with ddp")

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
        if self.max_memory_per_gpu is not None:
            what = f"needs strategy model_parallel, not {strategy}"
            found.append(Problem("parallel.max_memory_per_gpu", what))
        for name in ("pipeline_parallel_size", "tensor_parallel_size"):
            if getattr(self, name) != 1:
                found.append(Problem(f"parallel.{name}", f"must be 1 with strategy {strategy}"))
        return found
