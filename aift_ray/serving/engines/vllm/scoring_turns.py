"""Requests that run together, and those that must be alone in the engine."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Admits requests in the order in which they come.

    vLLM 0.32 maps adapters to tokens by the requests of a step, also where it computes the log
    probabilities of a prompt (vllm-project/vllm#16668). With adapters these are therefore right
    only where their request is alone; beside others the engine fails or takes another's adapter.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()
        self._running = 0
        self._is_alone = False

    async def enter(self, alone: bool) -> None:
        """Wait until a request may begin; it must call `leave` once.

        Args:
            alone: no other one runs, until this one calls `share` or `leave`.
        """
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, alone))
        self._admit()
        await turn

    def share(self) -> None:
        """The request that is alone lets others run beside it."""
        self._is_alone = False
        self._admit()

    def leave(self) -> None:
        """A request has ended."""
        self._running -= 1
        # who is alone is the only one that can leave
        self.share()

    def _admit(self) -> None:
        while self._waiting and not self._is_alone:
            turn, alone = self._waiting[0]
            if alone and self._running:
                return
            self._waiting.popleft()
            self._running += 1
            self._is_alone = alone
            turn.set_result(None)
