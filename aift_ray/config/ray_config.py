"""Where the workers of a run are, and what Ray does for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from aift_ray.config.section import Section, setting, workers_range


class RayConfig(Section):
    """Where the workers run and what Ray does for them."""

    num_workers: int | str | None = setting(
        None, "workers, or MIN:MAX for an elastic group; default: one a GPU, or one CPU worker"
    )
    cpus_per_worker: float | None = setting(
        None,
        "CPUs, and threads of computation, a worker; default: 1, with parallel.offload an equal "
        "share of this machine's",
        gt=0,
    )
    use_gpu: bool | None = setting(None, "workers on GPUs; default: where there are any")
    resources_per_worker: dict[str, float] = setting(
        {}, "further Ray resources a worker asks for, {name: amount}"
    )
    storage_path: str | None = setting(
        None, "folder or URI to which checkpoints are copied as well (local, NFS, s3://...)"
    )
    resize_seconds: Annotated[float, Field(gt=0)] = setting(
        60.0, "seconds between looks for more room, for an elastic group"
    )
    max_failures: Annotated[int, Field(ge=-1)] = setting(
        3, "restarts of the group of workers after a lost one; -1: without limit"
    )

    @field_validator("num_workers")
    @classmethod
    def _workers(cls, value: int | str | None) -> int | str | None:
        return value if value is None else workers_range(value)
