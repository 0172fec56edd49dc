"""The tokens of one request, handed from an engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from aift_ray.serving.engines.interface import EngineError, Request, Token
from aift_ray.serving.engines.transformers.scheduler import Row

log = logging.getLogger(__name__)


@dataclass
class TokenStream:
    """One request, in the queue or worked on.

    Attributes:
        cancelled: called with `key` where nobody wants its tokens any more.
        row: what there is of it, once it has had a slot.
        scored: the tokens of its prompt, told with the first of its answer.
    """

    key: int
    request: Request
    cancelled: Callable[[int], None]
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    over: bool = False
    row: Row | None = None
    scored: tuple[Token, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """What is to be read before its next token."""
        return self.row.tokens if self.row else self.request.prompt

    async def __aiter__(self) -> AsyncIterator[Token]:
        try:
            while not self.over:
                item = await self.queue.get()
                if isinstance(item, Exception):
                    self.over = True
                    raise EngineError(f"the engine failed: {item}") from item
                self.over = item.finish is not None
                yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop working on it and free its slot."""
        if not self.over:
            self.over = True
            self.cancelled(self.key)

    def put(self, item: Token | Exception) -> None:
        """Called in the engine's thread."""
        if self.scored and isinstance(item, Token):
            item, self.scored = replace(item, prompt=self.scored), ()
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:
            log.debug("the event loop of a request is closed")
