"""Shares of a work on actors of a Ray cluster, results as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from aift_ray.engine.run_errors import short
from aift_ray.errors import AiftError, WorkersLost
from aift_ray.runs import worker_env

S = TypeVar("S", contravariant=True)
T = TypeVar("T", covariant=True)


class Runner(Protocol[S, T]):
    """What an actor holds."""

    def run(self, share: S) -> Iterator[T]:
        """The results of a share, as they come."""

    def notes(self) -> list[str]:
        """What is to be told about them."""


class _Actor:
    def __init__(
        self, make: Callable[[], Runner[object, object]], secrets: worker_env.Secrets
    ) -> None:
        os.environ.update(secrets.values)
        self._runner = make()

    def run(self, share: object) -> Iterator[object]:
        yield from self._runner.run(share)

    def notes(self) -> list[str]:
        return self._runner.notes()


def stream(
    make: Callable[[], Runner[S, T]], shares: Sequence[S], cpus: int, gpus: int, notes: list[str]
) -> Iterator[T]:
    """The results of all shares, each on an actor of its own.

    Args:
        make: what an actor holds; called in its process.
        cpus, gpus: of each actor.
        notes: what the actors tell at their end is added to it.

    Raises:
        AiftError: an actor failed or was lost.
    """
    kind: Any = ray.remote(_Actor)
    environment = worker_env.environment() | {"OMP_NUM_THREADS": str(cpus)} | worker_env.waiting()
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}
    actors = [kind.options(**options).remote(make, worker_env.secrets()) for _ in shares]
    try:
        running = {
            actor.run.options(num_returns="streaming").remote(share): actor
            for actor, share in zip(actors, shares, strict=True)
        }
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            for generator in ready:
                try:
                    yield ray.get(next(generator))
                except StopIteration:
                    notes += ray.get(running.pop(generator).notes.remote())
    except RayTaskError as error:
        if isinstance(error.cause, AiftError):
            raise error.cause from None
        raise AiftError(f"a worker failed: {short(error.cause)}") from error
    except RayActorError as error:
        raise WorkersLost(f"a worker was lost: {short(error)}") from error
    finally:
        for actor in actors:
            ray.kill(actor)
