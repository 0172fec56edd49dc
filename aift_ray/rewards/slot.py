"""A place for a worker process: one that has ended is replaced when the place is next asked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from aift_ray.errors import ConfigError, Problem
from aift_ray.rewards.processes import Worker, WorkerEnded, WorkerTimeout
from aift_ray.rewards.spec import RewardSpec


class Slot:
    """One place for a worker process.

    Args:
        specs: the rewards that it computes, by their numbers.
        memory: see `Worker`.
        loading_timeout: seconds in which each of them is loaded.
    """

    def __init__(
        self,
        specs: dict[int, RewardSpec],
        memory: int | None,
        loading_timeout: float,
        starter: ThreadPoolExecutor,
    ) -> None:
        self._specs, self._memory, self._starter = specs, memory, starter
        self._loading_timeout = loading_timeout
        self._worker: Worker | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The number of the process; None while there is none."""
        worker = self._worker
        return worker.pid if worker else None

    def start(self) -> list[Problem]:
        """Start the process and load the rewards; what is wrong with them.

        Raises:
            WorkerEnded: the place is closed.
        """
        if self._closed:
            raise WorkerEnded("the rewards are closed")
        worker = Worker(self._memory, self._starter)
        if self._closed:
            worker.kill()
            raise WorkerEnded("the rewards are closed")
        self._worker = worker
        problems: list[Problem] = []
        for at, spec in self._specs.items():
            where = f"reward {spec.name}"
            try:
                answer = worker.ask(("load", at, spec), self._loading_timeout)
            except (WorkerEnded, WorkerTimeout) as error:
                self._drop()
                what = f"{spec.target} could not be loaded: {error}"
                return [*problems, Problem(where, what)]
            if "refused" in answer:
                problems.append(Problem(where, answer["refused"], answer["remedy"]))
        return problems

    def ask(self, request: tuple[Any, ...], timeout: float) -> Any:
        """The answer of the process.

        Raises:
            WorkerEnded, WorkerTimeout: there is none, and the process is gone.
        """
        if not self._worker:
            problems = self.start()
            if problems:
                raise WorkerEnded(f"its process could not be replaced: {problems[0].what}")
        assert self._worker
        try:
            return self._worker.ask(request, timeout)
        except (WorkerEnded, WorkerTimeout):
            self._drop()
            raise

    def close(self) -> None:
        """End the process for good; one that is asked meanwhile does not answer."""
        self._closed = True
        worker = self._worker
        if worker:
            worker.kill_process()

    def finish(self) -> None:
        """Let go of the connection, when nobody asks any more."""
        self._drop()

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            worker.kill()


class SlotPool:
    """Slots and the threads that ask them, started and closed together.

    Args:
        starter: whose thread starts the processes of `slots`.
        threads: those that wait for answers.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        starter: ThreadPoolExecutor,
        threads: Sequence[ThreadPoolExecutor],
    ) -> None:
        self.slots, self.threads = slots, threads
        self._starter = starter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def start(self) -> None:
        """Start every process.

        Raises:
            ConfigError: what is wrong with the rewards, each told once; all are closed.
        """
        try:
            with ThreadPoolExecutor(max(len(self.slots), 1)) as threads:
                found = list(threads.map(Slot.start, self.slots))
            if problems := list(dict.fromkeys(each for some in found for each in some)):
                raise ConfigError(problems)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The numbers of the worker processes."""
        return [slot.pid for slot in self.slots if slot.pid]

    def close(self) -> None:
        """End the processes; what is asked meanwhile is not answered."""
        for each in self.threads:
            each.shutdown(wait=False, cancel_futures=True)
        for slot in self.slots:
            slot.close()
        for each in self.threads:
            each.shutdown()
        for slot in self.slots:
            slot.finish()
        self._starter.shutdown()
