"""What machines of a cluster lack for a run, told before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aift_ray.config import RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.runs import worker_env
from aift_ray.runs.worker_resources import asked
from aift_ray.utils import deepspeed_check

# seconds that all machines may take to answer
_PATIENCE = 60.0


def check(configs: Iterable[RunConfig], gpu: bool) -> None:
    """Ask each machine on which a worker may be placed what it lacks for backend deepspeed.

    One that does not answer is asked by its workers, as is one that joins the cluster later.

    Args:
        configs: runs; of those that need the same, one is asked for.
        gpu: whether their workers have GPUs.

    Raises:
        ConfigError: what is missing, with the names of the machines.
    """
    runs = [each for each in configs if each.parallel.by_deepspeed]
    different = {(repr(each.parallel), repr(each.ray)): each for each in runs}
    asking = [answer for each in different.values() for answer in _asked(each, gpu)]
    problems: list[Problem] = []
    for answer in ray.wait(asking, num_returns=len(asking), timeout=_PATIENCE)[0] if asking else ():
        with suppress(ray.exceptions.RayError):
            problems += ray.get(answer)
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _asked(config: RunConfig, gpu: bool) -> Iterator[Any]:
    """What machines that have what a worker asks for are going to answer."""
    look: Any = ray.remote(deepspeed_check.named)
    need = asked(config.ray, config.parallel.gpus_a_worker if gpu else 0)
    for node in ray.nodes():
        if node["Alive"] and all(node["Resources"].get(n, 0) >= least for n, least in need.items()):
            yield look.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": worker_env.environment()},
            ).remote(config.parallel, gpu)
