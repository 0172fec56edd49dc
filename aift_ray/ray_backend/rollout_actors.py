"""Ray actors that generate completions beside the workers that train."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.engine.grpo.rollout_engine import Asked, CompletionEngine, Weights, engine_of
from aift_ray.engine.job import Job
from aift_ray.errors import AiftError, TrainingError
from aift_ray.runs.worker_env import Secrets
from aift_ray.utils.quiet import quiet

# times that a part is generated again because its actor was lost
_ATTEMPTS = 5


class _RolloutActor:
    """A process of its own with a `RolloutEngine`."""

    def __init__(self, job: Job, gpu: bool, threads: int, secrets: Secrets) -> None:
        import torch

        os.environ.update(secrets.values)
        torch.set_num_threads(threads)
        quiet()
        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        self._version = -1
        self._engine: CompletionEngine | None = None
        try:
            self._engine = engine_of(job, device)
        except AiftError as error:
            # an actor whose start fails would be started again
            self._problem = error

    def pid(self) -> int:
        """The number of the process."""
        return os.getpid()

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
        number: of the actors.
        gpu: each has a GPU.
    """

    def __init__(self, job: Job, number: int, gpu: bool, threads: int, secrets: Secrets) -> None:
        self._make: Callable[[], Any] = partial(_actor, job, gpu, threads, secrets)
        self._actors: list[Any] = [self._make() for _ in range(number)]
        self._version, self._closed = 0, False

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
                self._actors[at] = self._make()
                waiting.append(part)
                continue
            yield part, completions, seconds

    def close(self) -> None:
        """End the actors."""
        self._closed = True
        for actor in self._actors:
            ray.kill(actor)


def _actor(job: Job, gpu: bool, threads: int, secrets: Secrets) -> Any:
    made: Any = ray.remote(_RolloutActor)
    # not within the group of the workers that train, whose places are taken
    how = {"num_cpus": threads, "num_gpus": int(gpu), "scheduling_strategy": "DEFAULT"}
    return made.options(**how).remote(job, gpu, threads, secrets)
