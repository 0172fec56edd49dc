"""Several requests to an API at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


def ask_all(ask: Callable[[Q], A], questions: Sequence[Q], threads: int) -> Iterator[tuple[Q, A]]:
    """Questions with their answers, as they come.

    Raises:
        Exception: the first that `ask` raises; after the answers that were on their way.
    """
    failed: BaseException | None = None
    with ThreadPoolExecutor(threads) as pool:
        asked = {pool.submit(ask, question): question for question in questions}
        try:
            for done in as_completed(asked):
                if done.cancelled():
                    continue
                if (error := done.exception()) is None:
                    yield asked[done], done.result()
                elif failed is None:
                    failed = error
                    for waiting in asked:
                        waiting.cancel()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed is not None:
        raise failed
