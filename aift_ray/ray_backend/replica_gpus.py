"""The GPUs that each replica of a server gets."""

from __future__ import annotations

import math
import os

from aift_ray.config import ServeConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.drivers import usable_gpus


def gpus_of(config: ServeConfig, resources: dict[str, float]) -> int:
    """GPUs that each replica gets; 0 on a cluster without any.

    Raises:
        ConfigError: there are some, and too few for all replicas.
    """
    there, most = resources.get("GPU", 0.0), config.replicas()[1]
    each = config.vllm.tensor_parallel_size
    if there == 0:
        return 0
    if each * most > there:
        what = f"{most} replicas of {each} GPU{'s' * (each > 1)} need {each * most}, "
        # one without a GPU beside others with one would be far slower, or take a GPU of theirs
        remedy = "lower --num-replicas"
        if each > 1:
            remedy += " or --vllm.tensor_parallel_size"
        remedy += "; to serve on CPUs, CUDA_VISIBLE_DEVICES=''"
        problem = Problem("serving.num_replicas", f"{what}and there are {there:g}", remedy)
        raise ConfigError([problem])
    return each


def gpus_here() -> dict[str, float]:
    """What the cluster may have, before it is asked.

    Raises:
        ConfigError: this machine has GPUs that torch can't use.
    """
    # a cluster elsewhere may have GPUs
    return {"GPU": math.inf if os.environ.get("RAY_ADDRESS") else usable_gpus()}
