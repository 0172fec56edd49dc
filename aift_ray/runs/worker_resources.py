"""What workers ask of a machine or a cluster, and whether it can ever be given."""

from __future__ import annotations

import os

from aift_ray.config import RayConfig, RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.drivers import usable_gpus


def asked(config: RayConfig, gpus: int) -> dict[str, float]:
    """What one worker, on `gpus` GPUs, asks of the cluster, {resource: amount}."""
    resources = {"CPU": config.cpus_per_worker or 1.0, **config.resources_per_worker}
    return resources | {"GPU": float(gpus)} if gpus else resources


def check_resources(
    config: RunConfig, workers: int, gpus: int, resources: dict[str, float]
) -> None:
    """Refuse what the cluster can never give.

    Args:
        workers: that train; processes that generate for them are counted too.
        gpus: of each worker.

    Raises:
        ConfigError: too few CPUs, GPUs or other resources.
    """
    problems, actors = [], config.rollout_actors
    for name, amount in asked(config.ray, gpus).items():
        needed, there = amount * (workers + actors), resources.get(name, 0.0)
        if needed > there:
            who = f"{workers} workers" + (f" and {actors} rollout workers" if actors else "")
            what = f"{who} need {needed:g} {name}, the cluster has {there:g}"
            flags = ["--num-workers"] + ["--grpo.rollout_workers"] * (actors > 1)
            if name != "GPU":
                flags.append(f"--ray.{'cpus' if name == 'CPU' else 'resources'}_per_worker")
            remedy = f"lower {' or '.join(flags)}"
            problems.append(Problem("ray.num_workers", what, remedy))
    if problems:
        raise ConfigError(problems)


def of_machine(gpus: int) -> dict[str, float]:
    """What this machine has, {resource: amount}, with its `gpus` GPUs."""
    return {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}


def gpus_used(config: RunConfig, there: int) -> int:
    """GPUs that the workers take, of those that are there; 0: they compute on CPUs."""
    if config.ray.use_gpu is None:
        return there
    return max(there, 1) if config.ray.use_gpu else 0


def local_gpus(config: RunConfig) -> int:
    """GPUs of this machine, where the run may take any.

    Raises:
        ConfigError: there are some that torch can't use.
    """
    return 0 if config.ray.use_gpu is False else usable_gpus()
