"""The workers of a run, as one of them sees them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from aift_ray.parallel.torch_compat import default_store

T = TypeVar("T")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """Rank, number of workers and device of this process.

    Attributes:
        model_parallel_size: consecutive ranks that hold one model together; each such set is a
            replica, whose workers see the same rows.
        context_parallel_size: consecutive ranks, each with the whole model, that divide the tokens
            of the same rows; they are a replica, too.
    """

    rank: int
    world_size: int
    device: torch.device
    model_parallel_size: int = 1
    context_parallel_size: int = 1

    @classmethod
    def alone(cls) -> Group:
        """One worker on the first GPU, or the CPU."""
        return cls(0, 1, torch.device("cuda", 0) if torch.cuda.is_available() else _CPU)

    @property
    def is_main_process(self) -> bool:
        """Whether this worker writes files and talks."""
        return self.rank == 0

    @property
    def dp_rank(self) -> int:
        """The number of this worker's replica of the model."""
        return self.rank // self.workers_per_replica

    @property
    def mp_rank(self) -> int:
        """The number of this worker in its replica."""
        return self.rank % self.workers_per_replica

    @property
    def dp_size(self) -> int:
        """Replicas of the model: shares in which rows are dealt out."""
        return self.world_size // self.workers_per_replica

    @property
    def workers_per_replica(self) -> int:
        """Workers that see the same rows."""
        return self.model_parallel_size * self.context_parallel_size

    @property
    def context_rank(self) -> int:
        """The number of this worker among those that divide its rows."""
        return self.rank % self.context_parallel_size

    @property
    def random_rank(self) -> int:
        """The number of this worker among those with random numbers of their own."""
        return self.rank if self.context_parallel_size > 1 else self.dp_rank

    @property
    def is_last_mp_rank(self) -> bool:
        """Whether this worker counts for its replica: the last, which has a pipeline's loss."""
        return self.mp_rank == self.workers_per_replica - 1

    def total(self, *values: float) -> list[float]:
        """The sum over all replicas of values that the worker of each that counts has."""
        return self.sum(*[value if self.is_last_mp_rank else 0.0 for value in values])

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all workers, in double precision."""
        if self.world_size == 1:
            return list(values)
        # MPS aside, every backend reduces float64; gloo does so on the CPU
        device = self.device if dist.get_backend() == "nccl" else _CPU
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        result: list[float] = tensor.tolist()
        return result

    def joined(self, *values: float | torch.Tensor) -> torch.Tensor:
        """The same of numbers and tensors (), as a tensor (values,) that is not waited for.

        It is on the device where that reduces it; gloo's workers meet in host memory.
        """
        on_device = self.device.type == "cuda" and (
            self.world_size == 1 or dist.get_backend() == "nccl"
        )
        device = self.device if on_device else _CPU
        numbers = torch.tensor(
            [0.0 if isinstance(value, torch.Tensor) else value for value in values],
            dtype=torch.float64,
            pin_memory=on_device,
        ).to(device, non_blocking=True)
        for at, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                numbers[at] = value.detach().to(numbers)
        if self.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def agree(self, value: T) -> T:
        """The value that rank 0 gives, on every worker."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def first(self, value: T | None) -> T | None:
        """The first of the workers' values that is not None, on every worker."""
        if self.world_size == 1:
            return value
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return next((one for one in values if one is not None), None)

    def leave(self) -> None:
        """Let the others know that this worker goes no further."""
        if self.world_size > 1:
            default_store().set(f"aift_ray/left/{self.rank}", "")

    def all_leave(self, seconds: float) -> bool:
        """Whether all workers go no further, after waiting for them for some time."""
        if self.world_size == 1:
            return True
        marks = [f"aift_ray/left/{rank}" for rank in range(self.world_size)]
        try:
            default_store().wait(marks, timedelta(seconds=seconds))
        except dist.DistError:
            return False
        return True

    def all_see(self, folder: Path) -> bool:
        """Whether all workers see the same `folder`, which is made where it is not there."""
        marker = folder / f".seen-{self.agree(time.time_ns())}"
        if self.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            marker.touch()
        self.barrier()
        (blind,) = self.sum(float(not marker.exists()))
        if self.is_main_process:
            marker.unlink()
        return not blind

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world_size > 1:
            dist.barrier()


def begin_alone(group: Group) -> None:
    """Make a process group of one, for a process that nobody started as a worker."""
    if group.world_size == 1 and not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(store=store, rank=0, world_size=1)
