"""Where the workers of a run are, and what Ray does for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from aift_ray.config.section import Section, setting, workers_range


class RayConfig(Section):
    """Where the workers run and what Ray does for them."""

    num_workers: int | str | None = setting(
        None,
        "number of workers, or MIN:MAX for an elastic group; default: one per GPU, or one CPU "
        "worker",
    )
    cpus_per_worker: float | None = setting(
        None,
        "CPUs and compute threads per worker; default: 1, or with parallel.offload an equal "
        "share of the CPUs of this machine",
        gt=0,
    )
    use_gpu: bool | None = setting(None, "train on GPUs; default: if there are any")
    resources_per_worker: dict[str, float] = setting(
        {}, "additional Ray resources of a worker, {name: amount}"
    )
    storage_path: str | None = setting(
        None, "folder or URI to which checkpoints are copied (local, NFS, s3://...)"
    )
    resize_seconds: Annotated[float, Field(gt=0)] = setting(
        60.0, "seconds between attempts to grow an elastic group"
    )
    max_failures: Annotated[int, Field(ge=-1)] = setting(
        3, "maximum number of restarts after the loss of a worker; -1: no limit"
    )

    @field_validator("num_workers")
    @classmethod
    def _workers(cls, value: int | str | None) -> int | str | None:
        return value if value is None else workers_range(value)
