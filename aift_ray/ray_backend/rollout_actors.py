"""Ray actors that generate completions beside the workers that train."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.engine.grpo.rollout_engine import Asked, CompletionEngine, Weights, engine_of
from aift_ray.engine.job import Job
from aift_ray.errors import AiftError, TrainingError
from aift_ray.runs.worker_env import Secrets
from aift_ray.utils.quiet import quiet

# times that a part is generated again because its actor was lost
_ATTEMPTS = 5


class SharedPlace(NamedTuple):
    """Where a worker computes, and an actor in turn with it.

    Attributes:
        node: Ray's id of the machine.
        gpu: as CUDA_VISIBLE_DEVICES names it; None: a CPU.
    """

    node: str
    gpu: str | None


def place_of(device: torch.device) -> SharedPlace:
    """That of this worker."""
    gpu = None
    if device.type == "cuda":
        known = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = device.index or 0
        gpu = known.split(",")[number] if known else str(number)
    return SharedPlace(ray.get_runtime_context().get_node_id(), gpu)


class _RolloutActor:
    """A process of its own with a `RolloutEngine`."""

    def __init__(
        self, job: Job, place: SharedPlace | None, gpu: bool, threads: int, secrets: Secrets
    ) -> None:
        os.environ.update(secrets.values)
        if place and place.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
        torch.set_num_threads(threads)
        quiet()
        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        self._version = -1
        self._engine: CompletionEngine | None = None
        try:
            self._engine = engine_of(job, device)
            self.rest()
        except AiftError as error:
            # an actor whose start fails would be started again
            self._problem = error

    def pid(self) -> int:
        """The number of the process."""
        return os.getpid()

    def rest(self) -> None:
        """Give memory that a worker needs meanwhile back until completions are wanted."""
        if self._engine:
            self._engine.rest()

    def generate(
        self, version: int, weights: Weights, asked: Asked
    ) -> tuple[list[list[Completion]], float]:
        """Completions, by the weights of a version, and the seconds that they took."""
        began = time.perf_counter()
        if self._engine is None:
            raise self._problem
        if version != self._version:
            self._engine.load(weights)
            self._version = version
        return self._engine.generate(asked), time.perf_counter() - began


class RolloutActors:
    """Generates by several actors; one that is lost is replaced, and its part generated again.

    Args:
        places: of each actor that computes in turn with a worker; None: it has its own CPUs or GPU.
        gpu: each has a GPU.
    """

    def __init__(
        self,
        job: Job,
        places: Sequence[SharedPlace | None],
        gpu: bool,
        threads: int,
        secrets: Secrets,
    ) -> None:
        make = partial(_actor, job, gpu=gpu, threads=threads, secrets=secrets)
        self._make: list[Callable[[], Any]] = [partial(make, place) for place in places]
        self._actors: list[Any] = [each() for each in self._make]
        self._in_turn = job.config.generates_in_turn
        self._version, self._closed = 0, False
        if self._in_turn:
            # before the workers need the memory
            ray.wait([actor.pid.remote() for actor in self._actors], num_returns=len(self._actors))

    def generate(
        self, weights: Weights, asked: Sequence[Asked]
    ) -> Iterator[tuple[int, list[list[Completion]], float]]:
        """The number of each part with its completions and seconds, as they are ready.

        Raises:
            TrainingError: actors are lost again and again.
            AiftError: what an actor failed with.
        """
        self._version += 1
        put: Any = ray.put
        held = put(weights)
        waiting, attempts = list(range(len(asked)))[::-1], [0] * len(asked)
        idle, under_way = list(range(len(self._actors))), dict[Any, tuple[int, int]]()
        while waiting or under_way:
            while waiting and idle:
                part, at = waiting.pop(), idle.pop()
                call = self._actors[at].generate.remote(self._version, held, asked[part])
                under_way[call] = (part, at)
            [ready], _ = ray.wait(list(under_way), num_returns=1)
            part, at = under_way.pop(ready)
            idle.append(at)
            try:
                completions, seconds = ray.get(ready)
            except RayTaskError as error:
                # of the actor's own code; its form on Ray holds a traceback
                raise (error.cause if isinstance(error.cause, AiftError) else error) from None
            except RayActorError as error:
                attempts[part] += 1
                if self._closed or attempts[part] == _ATTEMPTS:
                    what = f"the actors that generate completions were lost {_ATTEMPTS} times"
                    raise TrainingError(f"{what}: {error}") from error
                self._actors[at] = self._make[at]()
                waiting.append(part)
                continue
            yield part, completions, seconds
        if self._in_turn:
            resting = [actor.rest.remote() for actor in self._actors]
            ray.wait(resting, num_returns=len(resting))

    def close(self) -> None:
        """End the actors."""
        self._closed = True
        for actor in self._actors:
            ray.kill(actor)


def _actor(job: Job, place: SharedPlace | None, gpu: bool, threads: int, secrets: Secrets) -> Any:
    made: Any = ray.remote(_RolloutActor)
    # not within the group of the workers that train, whose places are taken
    # as many CPUs as `check_resources` counts for it: one that asked for more might wait for ever
    cpus = job.config.ray.cpus_per_worker or 1.0
    where: Any = {"num_cpus": cpus, "num_gpus": int(gpu), "scheduling_strategy": "DEFAULT"}
    if place:
        # in turn with a worker, on what that has
        node = NodeAffinitySchedulingStrategy(place.node, soft=False)
        where = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": node}
    return made.options(**where).remote(job, place, gpu, threads, secrets)
