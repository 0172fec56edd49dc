"""How the model is spread over workers, and what of it is not possible."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from aift_ray.config import deepspeed_config
from aift_ray.config.section import Positive, Section, memory_bytes, memory_size, setting
from aift_ray.errors import Problem


class ParallelConfig(Section):
    """How the model is spread over workers."""

    strategy: Literal[
        "ddp", "fsdp", "zero1", "zero2", "zero3", "model_parallel", "pipeline", "tensor", "auto"
    ] = setting(
        "ddp",
        "ddp: a full replica on each worker; fsdp (= zero3): parameters, gradients and "
        "optimizer state are sharded; zero2: gradients and optimizer state; zero1: optimizer "
        "state; model_parallel: layers over the devices of one worker; pipeline: blocks over "
        "workers; tensor: every matrix is split over workers; auto: the first of ddp, zero2 and"
        " fsdp that fits in memory",
    )
    max_memory_per_gpu: dict[int, str] | None = setting(
        None,
        "model_parallel: memory to use on each GPU, {0: 22GB} (as a flag: 0=22GB); default: 90%",
    )
    pipeline_parallel_size: Positive = setting(
        1, "pipeline: number of stages of a model replica; 1: all workers form one replica"
    )
    tensor_parallel_size: Positive = setting(
        1, "tensor: number of workers that each matrix is split over; 1: all workers"
    )
    context_parallel_size: Positive = setting(
        1,
        "number of workers that the tokens of each packed row are divided over; ddp, fsdp, zero1 to"
        " zero3",
    )
    spill_to_cpu: bool = setting(
        False, "model_parallel: keep and compute layers that fit on no device on the CPU, slowly"
    )
    pipeline_schedule: Literal["1f1b", "gpipe", "interleaved"] = setting(
        "1f1b", "pipeline schedule; interleaved: two stages per worker"
    )
    pipeline_microbatches: Positive | None = setting(
        None, "pipeline: micro-batches per step; default: gradient_accumulation_steps"
    )
    offload: bool = setting(
        False,
        "fsdp and zero3 on GPUs: keep weights, gradients and optimizer state in host memory; "
        "backend deepspeed: with zero1 and zero2 gradients and optimizer state",
    )
    gpu_memory: str | None = setting(
        None,
        "memory that a run may use on each GPU, such as 22GB; default: all; also plans for GPUs"
        " that this machine does not have",
    )

    backend: Literal["auto", "fsdp2", "deepspeed"] = setting(
        "auto",
        "library that partitions the model with zero1, zero2 and zero3; deepspeed needs the extra "
        "aift-ray[deepspeed]; auto: fsdp2",
    )

    deepspeed_config: str | None = setting(
        None,
        "a DeepSpeed configuration (JSON) for parallel.backend deepspeed: zero_optimization, with "
        "offload to cpu and nvme, and scheduler are used; what contradicts other settings is an "
        "error",
    )

    @field_validator("deepspeed_config")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # workers run in folders of their own
        return str(Path(value).expanduser().absolute()) if value else value

    @field_validator("gpu_memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)

    @field_validator("max_memory_per_gpu")
    @classmethod
    def _sizes(cls, value: dict[int, str] | None) -> dict[int, str] | None:
        if value == {} or any(number < 0 for number in value or ()):
            raise ValueError("give numbers of GPUs and sizes, for example {0: 22GB, 1: 22GB}")
        return value and {number: memory_size(size) for number, size in value.items()}

    @property
    def gpu_bytes(self) -> int | None:
        """`gpu_memory` in bytes."""
        return None if self.gpu_memory is None else memory_bytes(self.gpu_memory)

    @property
    def limits(self) -> dict[int, int]:
        """Bytes that each device may take, of strategy model_parallel."""
        return {
            n: memory_bytes(size) for n, size in sorted((self.max_memory_per_gpu or {}).items())
        }

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
    def is_sharded_data_parallel(self) -> bool:
        """Whether something of the model is shared out over the workers."""
        return self.strategy in ("fsdp", "zero1", "zero2", "zero3")

    @property
    def by_deepspeed(self) -> bool:
        """Whether DeepSpeed partitions the model."""
        return self.backend == "deepspeed"

    @property
    def keeps_outside(self) -> bool:
        """Whether something of the model is kept outside the GPU, so that one worker suffices."""
        return self.offload or bool(deepspeed_config.offloaded(self))

    @property
    def model_parallel_size(self) -> int:
        """Workers that hold one model together, each a part of it."""
        sizes = {"pipeline": self.pipeline_parallel_size, "tensor": self.tensor_parallel_size}
        return sizes.get(self.strategy, 1)

    @property
    def workers_per_replica(self) -> int:
        """Workers that see the same rows: they hold one model together, or divide the rows."""
        return self.model_parallel_size * self.context_parallel_size

    def misfits(self, least: int, most: int) -> list[Problem]:
        """What the strategy can't do with `least` to `most` workers."""
        strategy, size, found = self.strategy, self.workers_per_replica, []
        divides = self.context_parallel_size > 1
        if self.shards_weights and not self.keeps_outside and most < 2:
            what = f"{strategy} shares the model out over workers, and there is one"
            remedy = "give --num-workers 2 or more, or use --strategy ddp"
            if self.by_deepspeed:
                remedy += ", or offload by --parallel.offload or the DeepSpeed file"
            found.append(Problem("parallel.strategy", what, remedy))
        if strategy == "pipeline" and most < 2:
            what = "a stage of pipeline is a worker, and there is one"
            remedy = "give --num-workers 2 or more, or use --strategy ddp"
            found.append(Problem("parallel.strategy", what, remedy))
        if (divides or strategy in ("pipeline", "model_parallel", "tensor")) and least != most:
            name = "parallel.context_parallel_size" if divides else strategy
            what = f"{least}:{most} is elastic, and {name} takes a fixed number"
            remedy = "give one number" + ("" if divides else ", or use --strategy fsdp")
            found.append(Problem("ray.num_workers", what, remedy))
        elif strategy == "model_parallel" and most != 1:
            what = f"{most} workers; model_parallel is one, which holds all devices"
            remedy = "leave --num-workers out, or use --strategy pipeline or fsdp"
            found.append(Problem("ray.num_workers", what, remedy))
        elif most % size:
            kind = "context" if divides else strategy
            what = f"{most} is not a multiple of parallel.{kind}_parallel_size {size}"
            remedy = f"give --num-workers {-(-most // size) * size}, or a size that divides {most}"
            found.append(Problem("ray.num_workers", what, remedy))
        return found

    @property
    def shards_weights(self) -> bool:
        """Whether each worker holds a part of each weight."""
        return self.is_sharded_data_parallel or self.strategy == "tensor"

    def contradictions(self, base_bits: int | None) -> list[Problem]:
        """Conflicting settings, with a base model of `base_bits` bits if quantized."""
        found, strategy = [], self.strategy
        if self.shards_weights and base_bits == 8:
            what = f"{strategy} can't shard 8-bit weights: their scales are stored separately"
            remedy = "use 4 bits (--lora.qlora_4bit true), or --strategy ddp"
            found.append(Problem("lora.qlora_4bit", what, remedy))
        whole = self.by_deepspeed and strategy in ("zero1", "zero2")
        if self.offload and strategy not in ("fsdp", "zero3") and not whole:
            what = f"needs strategy fsdp or zero3, not {strategy}"
            found.append(Problem("parallel.offload", what, "use --strategy fsdp"))
        if self.offload and base_bits:
            what = f"can't move a base model of {base_bits} bits: its scales stay on the GPU"
            found.append(Problem("parallel.offload", what, "leave it off, or use --method lora"))
        found += self._beside_deepspeed()
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
        if self.spill_to_cpu and self.max_memory_per_gpu is None and strategy == "model_parallel":
            what = "needs parallel.max_memory_per_gpu, the limit of each GPU"
            found.append(Problem("parallel.spill_to_cpu", what))
        return found

    def _beside_deepspeed(self) -> list[Problem]:
        """What backend deepspeed can't have."""
        found, strategy = [], self.strategy
        if self.backend != "auto" and strategy not in ("zero1", "zero2", "zero3"):
            what = f"is for strategy zero1, zero2 and zero3, not {strategy}"
            found.append(Problem("parallel.backend", what, "leave it out, or use --strategy zero3"))
        if self.deepspeed_config is not None and not self.by_deepspeed:
            what = f"applies to backend deepspeed only, not {self.backend}"
            remedy = "give --parallel.backend deepspeed, or leave it out"
            found.append(Problem("parallel.deepspeed_config", what, remedy))
        return found

    def beside(self, objective: str, compiles: bool, precision: str) -> list[Problem]:
        """Settings of other sections that backend deepspeed can't have."""
        found, remedy = [], "use --parallel.backend fsdp2"
        if not self.by_deepspeed:
            return []
        if compiles:
            what = "compiles blocks whose weights DeepSpeed gathers by hooks"
            found.append(Problem("training.compile", what, f"leave it out, or {remedy}"))
        if objective == "grpo":
            what = "grpo generates with weights that DeepSpeed has partitioned"
            found.append(Problem("objective", what, remedy))
        if precision == "fp16":
            what = "fp16 scales the loss, which is not done with parallel.backend deepspeed"
            found.append(Problem("training.precision", what, f"use bf16, or {remedy}"))
        return found

    def refused_optimizer(self, optimizer: str, rounded: bool) -> list[Problem]:
        """Where moments, or weights that are `rounded` stochastically to bf16, can't be kept."""
        found, strategy = [], self.strategy
        beside = "parallel.offload" if self.offload else f"strategy {strategy}"
        beside = "parallel.backend deepspeed" if self.by_deepspeed else beside
        elsewhere = self.offload or self.by_deepspeed
        if optimizer != "adamw" and (elsewhere or strategy == "tensor"):
            what = f"{optimizer} is not possible with {beside}"
            found.append(Problem("training.optimizer", what, "use adamw, or --strategy fsdp"))
        elif self.spill_to_cpu and optimizer.startswith("paged"):
            what = f"{optimizer} pages a GPU's memory, and parallel.spill_to_cpu trains in the host"
            found.append(Problem("training.optimizer", what, "use adamw_8bit, or leave one off"))
        if rounded and (elsewhere or strategy in ("tensor", "pipeline", "model_parallel")):
            what = f"is not possible with {beside}"
            remedy = "use --strategy fsdp, or leave it out"
            found.append(Problem("training.bf16_stochastic_round", what, remedy))
        return found
