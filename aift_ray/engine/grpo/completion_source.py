"""Where completions come from: the workers that train, or processes apart that one worker asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from aift_ray.config import GRPOConfig
from aift_ray.engine.grpo.completion_generation import Completion, CompletionGenerator
from aift_ray.engine.grpo.episode_generation import EpisodeGenerator
from aift_ray.engine.grpo.rollout_engine import (
    Asked,
    RolloutPool,
    Weights,
    completed,
    trained_weights,
)
from aift_ray.engine.precision import Precision
from aift_ray.errors import AiftError
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel

T = TypeVar("T")
# a model, or copies of its trained weights
Policy = LossModel | Weights
# the number of a part, its completions and seconds
Generated = Iterator[tuple[int, list[list[Completion]], float]]


class CompletionSource(Protocol):
    """Generates by the weights of one moment.

    Attributes:
        group: the workers among which the parts of a generation are divided.
    """

    group: Group

    def generate(self, asked: list[Asked]) -> Generated:
        """This worker's share of the parts, as they are ready."""


@dataclass
class Colocated:
    """The workers that train generate, each its share, with the model in memory.

    Attributes:
        episodes: generates completions of several turns; None: they are of one turn.
    """

    module: LossModel
    how: GRPOConfig
    stop_ids: list[int]
    precision: Precision
    group: Group
    episodes: EpisodeGenerator | None

    def generate(self, asked: list[Asked]) -> Generated:
        """This worker's share of the parts."""
        module, device = self.module, self.group.device
        alone = (self.how, self.stop_ids, device)
        generator = CompletionGenerator(module.decode, module.model, *alone)
        was = module.training
        module.eval()
        try:
            with module.whole_weights():
                for at in range(self.group.dp_rank, len(asked), self.group.dp_size):
                    began = time.perf_counter()
                    with self.precision.autocast(device):
                        made = completed(generator.generate, self.episodes, asked[at])
                    yield at, made, time.perf_counter() - began
        finally:
            module.train(was)


@dataclass
class _Apart:
    """Other processes generate; the worker that asks them gets all parts."""

    pool: RolloutPool
    weights: Weights
    group: Group

    def generate(self, asked: list[Asked]) -> Generated:
        """All parts."""
        yield from self.pool.generate(self.weights, asked)


class Leader:
    """Has worker 0 make rollouts by a pool, in a thread of its own, and gives them to all workers.

    Args:
        pool: on worker 0; None on the others.
        in_turn: it computes on the devices of the workers.
    """

    def __init__(self, group: Group, pool: RolloutPool | None, in_turn: bool = False) -> None:
        self._group, self._pool, self._in_turn = group, pool, in_turn
        self._thread = ThreadPoolExecutor(1, "rollouts") if pool else None

    def begin(self, policy: Policy, work: Callable[[CompletionSource], T]) -> Callable[[], T]:
        """Start work with a model's weights as they are now, or with copies of some.

        Returns what waits for the result.

        Works run one after the other. Every worker must call what is returned, in the same order.

        Raises:
            AiftError: by what is returned: the work failed.
        """
        future: Future[T] | None = None
        leads = self._pool is not None
        weights = policy if isinstance(policy, dict) else trained_weights(policy.model, leads)
        if self._in_turn and self._group.device.type == "cuda":
            # the pool needs what this process holds and does not use
            torch.cuda.empty_cache()
            self._group.barrier()
        if self._thread and self._pool:
            alone = Group(0, 1, self._group.device)
            source = _Apart(self._pool, weights, alone)
            future = self._thread.submit(work, source)
        return lambda: self._shared(future)

    def _shared(self, future: Future[T] | None) -> T:
        found, failed = None, None
        try:
            found = future.result() if future else None
        except AiftError as error:
            # the others must not wait for this worker
            failed = error
        found, failed = gathered(self._group, (found, failed))[0]
        if failed is not None:
            raise failed
        return found  # type: ignore[return-value]

    def close(self) -> None:
        """End the processes that generate, and what was started."""
        if self._thread and self._pool:
            self._pool.close()
            self._thread.shutdown(wait=True, cancel_futures=True)


def gathered(group: Group, mine: T) -> list[T]:
    """What each worker has, by rank."""
    if group.world_size == 1:
        return [mine]
    found: list[Any] = [None] * group.world_size
    dist.all_gather_object(found, mine)
    return found
