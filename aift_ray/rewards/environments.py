"""Episodes of an environment in worker processes, with limits of time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aift_ray.errors import Problem, RewardError
from aift_ray.rewards.environment import METHODS
from aift_ray.rewards.processes import WorkerEnded, WorkerTimeout
from aift_ray.rewards.slot import Slot, SlotPool
from aift_ray.rewards.spec import RewardSpec

_ATTEMPTS = 2


class Environments(SlotPool):
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
        starter = ThreadPoolExecutor(1, "environments-starter")
        slots = [Slot({0: spec}, memory, max(timeout, 60.0), starter) for _ in range(processes)]
        # one thread a process: an episode stays with the process that began it
        threads = [ThreadPoolExecutor(1, "environments") for _ in slots]
        super().__init__(slots, starter, threads)
        self.start()

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

    def check(self, row: Mapping[str, Any]) -> list[Problem]:
        """What keeps the model from an episode of a row: begun, and given an empty answer."""
        where = "grpo.environment"
        try:
            if self.reset([row])[0]:
                what = f"{self._name}: reset returned a text, and completions follow the prompt"
                remedy = "return None, and write the text into the rows"
                return [Problem(where, f"{what} of a row", remedy)]
            self.step({0: ""})
        except RewardError as error:
            return [Problem(where, str(error), f"write it as {METHODS}")]
        return []

    def _all(self, rows: list[int]) -> dict[int, Any]:
        futures = {row: self.threads[row % len(self.slots)].submit(self._ask, row) for row in rows}
        return {row: future.result() for row, future in futures.items()}

    def _ask(self, row: int) -> Any:
        slot, answers = self.slots[row % len(self.slots)], self._answers[row]
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


def _messages(reply: str | Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    if reply is None:
        return None
    return [{"role": "user", "content": reply}] if isinstance(reply, str) else list(reply)
