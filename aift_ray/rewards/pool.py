"""Rewards computed in worker processes, with limits of time and memory.

What a row gets depends on the row, and for functions that score several rows at once on the rows
of its call; neither on the number of processes nor on which of them it came to.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from aift_ray.errors import Problem, RewardError
from aift_ray.rewards.processes import WorkerEnded, WorkerTimeout
from aift_ray.rewards.slot import Slot, SlotPool
from aift_ray.rewards.spec import RewardSpec

OnFailure = float | Literal["error", "none"]
# calls of a process that ends; characters of a completion in a message
_ATTEMPTS, _SHOWN = 2, 120
# seconds in which a reward model is loaded
_MODEL = 600.0


@dataclass(frozen=True)
class _Batch:
    """What is scored, by columns."""

    prompts: list[Any]
    completions: list[Any]
    columns: dict[str, Sequence[Any]]
    state: dict[str, Any]

    def request(self, call: _Call) -> tuple[Any, ...]:
        """What a worker is asked of some of the rows."""
        columns = {
            name: [values[row] for row in call.rows] for name, values in self.columns.items()
        }
        prompts = [self.prompts[row] for row in call.rows]
        completions = [self.completions[row] for row in call.rows]
        return ("score", call.at, prompts, completions, columns, self.state)


@dataclass(frozen=True)
class _Call:
    """Some rows of one reward.

    Attributes:
        at: the number of the reward.
        rows: of the batch.
    """

    at: int
    rows: range


class _Failed(Exception):
    """A call has no rewards.

    Args:
        row: of the batch; None: not known.
        always: no row is to blame: the function is not what a reward function is.
    """

    def __init__(
        self, what: str, row: int | None = None, always: bool = False, remedy: str = ""
    ) -> None:
        super().__init__(what)
        self.what, self.row, self.always, self.remedy = what, row, always, remedy


class Rewards(SlotPool):
    """Computes rewards in processes of its own.

    Args:
        specs: the rewards, in the order of what `score` returns.
        timeout: seconds for one call of a reward.
        memory: bytes of data that a process with functions or built-in rewards may hold; None:
            any number.
        processes: processes for functions and built-in rewards; a reward model and a judge each
            have one more.
        on_failure: what a row gets whose reward fails: "error" raises RewardError, "none" leaves
            it without this reward, a number is its reward. What returns no list of numbers as
            long as its rows is always an error.
        loading_timeout: seconds in which a function is imported, `timeout` where that is longer;
            a reward model has ten minutes.

    Attributes:
        metrics, extra: what functions gave to `log_metric` and `log_extra` in the last batch.
        replaced: processes that were replaced because they had ended.

    Raises:
        ConfigError: a reward can't be loaded; with every such problem.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        timeout: float,
        memory: int | None,
        processes: int,
        on_failure: OnFailure = "error",
        loading_timeout: float = 60.0,
    ) -> None:
        self._specs, self._timeout, self._on_failure = list(specs), timeout, on_failure
        self.metrics: dict[str, list[float]] = {}
        self.extra: dict[str, list[str]] = {}
        self.replaced = 0
        # the thread that starts processes: they end with it, however this process ends
        starter = ThreadPoolExecutor(1, "rewards-starter")
        self._idle: dict[int, queue.Queue[Slot]] = {}
        slots: list[Slot] = []
        for group in _groups(specs, processes):
            own = {at: self._specs[at] for at in group}
            limited = memory if all(_is_code(each) for each in own.values()) else None
            loading = max(timeout, loading_timeout if _is_code(self._specs[group[0]]) else _MODEL)
            slot = Slot(own, limited, loading, starter)
            slots.append(slot)
            idle = self._idle.get(group[0]) or queue.Queue()
            idle.put(slot)
            self._idle |= dict.fromkeys(group, idle)
        self._threads = ThreadPoolExecutor(max(len(slots), 1), "rewards")
        super().__init__(slots, starter, [self._threads])
        self.start()

    def check(self, columns: Sequence[str]) -> list[Problem]:
        """What keeps the rewards from scoring rows with these columns."""
        found = []
        for at, spec in enumerate(self._specs):
            try:
                self._ask(at, ("columns", at, list(columns)))
            except _Failed as failed:
                found.append(Problem(f"reward {spec.name}", failed.what, failed.remedy))
        return found

    def score(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        completions: Sequence[str | list[dict[str, Any]]],
        columns: Mapping[str, Sequence[Any]],
        state: Mapping[str, Any] | None = None,
    ) -> list[list[float | None]]:
        """The rewards of a batch, unweighted; None: a row has no such reward.

        Args:
            columns: further columns of the rows, which functions are given by name.
            state: fields of what functions are given as `trainer_state`.

        Returns:
            (rewards, completions).

        Raises:
            RewardError: a reward failed; names the reward, the row and what went wrong.
        """
        self.metrics, self.extra = {}, {}
        batch = _Batch(list(prompts), list(completions), dict(columns), dict(state or {}))
        calls = list(self._calls(len(batch.completions)))
        futures = [self._threads.submit(self._call, batch, call) for call in calls]
        found: list[list[float | None]] = [[None] * len(completions) for _ in self._specs]
        try:
            # in order, so that of several failures always the first one is told
            for call, future in zip(calls, futures, strict=True):
                for row, value in zip(call.rows, self._rewards(batch, call, future), strict=True):
                    found[call.at][row] = value
        finally:
            for future in futures:
                future.cancel()
        return found

    def _calls(self, rows: int) -> Iterator[_Call]:
        for at, spec in enumerate(self._specs):
            step = spec.rows_per_call or max(rows, 1)
            for start in range(0, rows, step):
                yield _Call(at, range(start, min(start + step, rows)))

    def _call(self, batch: _Batch, call: _Call) -> dict[str, Any]:
        return self._ask(call.at, batch.request(call), call.rows)

    def _ask(self, at: int, request: tuple[Any, ...], rows: range = range(0)) -> dict[str, Any]:
        """The answer of one of the processes that hold a reward.

        Raises:
            _Failed: there is none, or the worker refused.
        """
        slot = self._idle[at].get()
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    answer: dict[str, Any] = slot.ask(request, self._timeout)
                    break
                except WorkerTimeout as error:
                    self.replaced += 1
                    raise _Failed(str(error)) from None
                except WorkerEnded as error:
                    # what was ended from outside is asked again; what ends itself does so again
                    self.replaced += 1
                    if attempt == _ATTEMPTS:
                        raise _Failed(f"{error}, {_ATTEMPTS} times") from None
        finally:
            self._idle[at].put(slot)
        if "refused" in answer:
            row = answer["row"]
            place = None if row is None else rows[row]
            raise _Failed(answer["refused"], place, answer["always"], answer["remedy"])
        return answer

    def _rewards(
        self, batch: _Batch, call: _Call, future: Future[dict[str, Any]]
    ) -> list[float | None]:
        try:
            return self._kept(future.result())
        except _Failed as failed:
            if failed.always:
                raise self._error(batch, call, failed) from None
            several = len(call.rows) > 1
            if self._on_failure == "error" and (failed.row is not None or not several):
                raise self._error(batch, call, failed) from None
            if several:
                return self._alone(batch, call, failed)
            return [None if self._on_failure == "none" else float(self._on_failure)]

    def _alone(self, batch: _Batch, call: _Call, failed: _Failed) -> list[float | None]:
        """The rewards of rows that failed together, each called alone, to find those to blame."""
        single = [_Call(call.at, range(row, row + 1)) for row in call.rows]
        futures = [self._threads.submit(self._call, batch, each) for each in single]
        try:
            pairs = zip(single, futures, strict=True)
            found = [value for one, each in pairs for value in self._rewards(batch, one, each)]
        finally:
            for each in futures:
                each.cancel()
        if self._on_failure == "error":
            # each row can be scored alone, and not together with the others
            raise self._error(batch, call, failed)
        return found

    def _kept(self, answer: dict[str, Any]) -> list[float | None]:
        for name, values in answer["metrics"].items():
            self.metrics.setdefault(name, []).extend(values)
        for name, texts in answer["extra"].items():
            self.extra.setdefault(name, []).extend(texts)
        return list(answer["rewards"])

    def _error(self, batch: _Batch, call: _Call, failed: _Failed) -> RewardError:
        row = failed.row if failed.row is not None else call.rows[0]
        place = f"row {row}"
        if failed.always or (failed.row is None and len(call.rows) > 1):
            place = f"rows {call.rows[0]} to {call.rows[-1]}"
        said = repr(batch.completions[row])
        shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
        what = f"reward {self._specs[call.at].name}, {place}: {failed.what}"
        remedy = f"\n      {failed.remedy}" if failed.remedy else ""
        return RewardError(f"{what}; the completion is {shown}{remedy}")


def _is_code(spec: RewardSpec) -> bool:
    return spec.kind in ("function", "builtin")


def _groups(specs: Sequence[RewardSpec], processes: int) -> list[list[int]]:
    """Which rewards each process computes: all that are code together, others by themselves."""
    code = [at for at, spec in enumerate(specs) if _is_code(spec)]
    others = [[at] for at, spec in enumerate(specs) if not _is_code(spec)]
    return ([code] * processes if code else []) + others
