"""Episodes of an environment in worker processes, with limits of time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from aift_ray.errors import ConfigError, RewardError
from aift_ray.rewards.processes import WorkerEnded, WorkerTimeout
from aift_ray.rewards.slot import Slot, first_problems
from aift_ray.rewards.spec import RewardSpec

_ATTEMPTS = 2


class Environments:
    """One episode for each row of a batch.

    Each request carries the row and all answers so far, so that an episode whose process is lost
    goes on in another one.

    Args:
        spec: of `parse_environment`.
        timeout: seconds for one step.
        memory: bytes of data that a process may hold; None: any number.
        processes: how many there are.

    Raises:
        ConfigError: the environment can't be loaded.
    """

    def __init__(
        self, spec: RewardSpec, *, timeout: float, memory: int | None, processes: int
    ) -> None:
        self._name, self._timeout = spec.name, timeout
        self._rows: list[Mapping[str, Any]] = []
        self._answers: list[list[str]] = []
        self._batch = 0
        self._starter = ThreadPoolExecutor(1, "environments-starter")
        self._slots = [
            Slot({0: spec}, memory, max(timeout, 60.0), self._starter) for _ in range(processes)
        ]
        # one thread a process: an episode stays with the process that began it
        self._threads = [ThreadPoolExecutor(1, "environments") for _ in self._slots]
        try:
            if problems := first_problems(self._slots):
                raise ConfigError(problems)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Environments:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The numbers of the worker processes."""
        return [slot.pid for slot in self._slots if slot.pid]

    def close(self) -> None:
        """End the processes."""
        for slot in self._slots:
            slot.close()
        for threads in self._threads:
            threads.shutdown(cancel_futures=True)
        for slot in self._slots:
            slot.finish()
        self._starter.shutdown()

    def reset(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Begin an episode for each row; what is added to its prompt, or None.

        Raises:
            RewardError: an episode failed; names the row and what went wrong.
        """
        self._batch += 1
        self._rows, self._answers = list(rows), [[] for _ in rows]
        found = self._all(list(range(len(rows))))
        return [found[row] for row in range(len(rows))]

    def step(self, answers: Mapping[int, str]) -> dict[int, list[dict[str, Any]] | None]:
        """What the model is shown after the answers of some episodes; None: one is over.

        Raises:
            RewardError: an episode failed; names the row and what went wrong.
        """
        for row, answer in answers.items():
            self._answers[row].append(answer)
        return {row: _messages(reply) for row, reply in self._all(list(answers)).items()}

    def _all(self, rows: list[int]) -> dict[int, Any]:
        futures = {
            row: self._threads[row % len(self._slots)].submit(self._ask, row) for row in rows
        }
        return {row: future.result() for row, future in futures.items()}

    def _ask(self, row: int) -> Any:
        slot, answers = self._slots[row % len(self._slots)], self._answers[row]
        request = ("episode", 0, (self._batch, row), self._rows[row], answers)
        what = ""
        for _ in range(_ATTEMPTS):
            try:
                answer = slot.ask(request, self._timeout)
            except WorkerTimeout as error:
                what = str(error)
                break
            except WorkerEnded as error:
                what = f"{error}, {_ATTEMPTS} times"
            else:
                if "refused" not in answer:
                    return answer["reply"]
                what = answer["refused"]
                break
        raise RewardError(f"environment {self._name}, row {row}, turn {len(answers)}: {what}")


def _messages(reply: Any) -> list[dict[str, Any]] | None:
    if reply is None:
        return None
    return [{"role": "user", "content": reply}] if isinstance(reply, str) else list(reply)
