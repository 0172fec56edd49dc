"""A run without Ray: in this process alone, or as one worker of a torchrun group."""

from __future__ import annotations

import gc
import os

import torch
import torch.distributed as dist

from aift_ray.engine.job import Job
from aift_ray.engine.run_session import Report
from aift_ray.engine.worker import nothing, work
from aift_ray.errors import ConfigError, Problem
from aift_ray.parallel.group import Group

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Workers of the torchrun group that this process belongs to.

    Raises:
        ConfigError: torchrun's environment is not there.
    """
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        what = f"needs the environment that torchrun makes ({', '.join(missing)} missing)"
        raise ConfigError(
            [Problem("training.local_rank", what, "start with torchrun, or use --num-workers")]
        )
    return int(os.environ["WORLD_SIZE"])


def leads() -> bool:
    """Whether this process is worker 0 of the group."""
    return os.environ["RANK"] == "0"


def join_and_work(job: Job, on_metrics: Report = nothing) -> None:
    """Do this process's share of `job` as a worker of torchrun's group.

    Args:
        on_metrics: as of `work`.
    """
    # one command gives all processes the same flags: torchrun's own number comes first
    local = int(os.environ.get("LOCAL_RANK", job.config.training.local_rank))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if job.config.parallel.offload:
        # torchrun gives each process one thread
        torch.set_num_threads(max(1, int(job.config.ray.cpus_per_worker or 1)))
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        group = Group(dist.get_rank(), dist.get_world_size(), device)
        work(job, group, on_metrics=on_metrics)
        # a model that is freed after its process group may wait for workers that have gone
        gc.collect()
    finally:
        dist.destroy_process_group()
