"""One answer in the making: pieces of its text, within the time that it may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.detokenizer import TextDelta, TextMaker
from aift_ray.serving.engines.interface import EngineError, Request, Stream, Token
from aift_ray.serving.server_metrics import Meter


@dataclass(frozen=True)
class Limits:
    """Seconds that a request may take in all, and between two tokens (waiting included)."""

    request_s: float = 600.0
    idle_s: float = 120.0


USUAL = Limits()


class Answer:
    """One answer in the making.

    Attributes:
        tokens: made so far, the one that ended it included.
    """

    def __init__(
        self,
        stream: Stream,
        text: TextMaker,
        limits: Limits,
        meter: Meter,
        model: str,
        request: Request,
    ) -> None:
        self.tokens = 0
        self._nothing = request.max_tokens == 0
        self._stream, self._text, self._limits = stream, text, limits
        self._timer = meter.timer(model, len(request.prompt))

    @property
    def thought_tokens(self) -> int:
        """How many of them were no part of the answer."""
        return self._text.thought_tokens

    async def pieces(self) -> AsyncGenerator[TextDelta]:
        """Pieces of text as they become certain, the last with `finish`.

        Raises:
            ApiError: 504 out of time, 500 the engine failed.
        """
        deadline = self._timer.start + self._limits.request_s
        tokens = aiter(self._stream)
        prompt: tuple[Token, ...] = ()
        try:
            while True:
                left = min(deadline - time.monotonic(), self._limits.idle_s)
                async with asyncio.timeout(max(left, 0.001)):
                    token = await anext(tokens)
                prompt = token.prompt or prompt
                if self._nothing:
                    piece: TextDelta | None = TextDelta("", finish="length")
                else:
                    self.tokens += 1
                    self._timer.token()
                    piece = self._text.push(token)
                if piece:
                    yield replace(piece, prompt=prompt)
                    prompt = ()
                    if piece.finish:
                        self._timer.finished(piece.finish)
                        return
        except TimeoutError:
            self._timer.finished("timeout")
            raise ApiError(504, "the answer took too long", None, "timeout") from None
        except EngineError as error:
            self._timer.finished("error")
            raise ApiError(500, str(error), None, "engine_failed") from None
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop and free the slot."""
        self._stream.cancel()
        self._timer.finished("cancelled")

    async def whole(self) -> TextDelta:
        """The whole answer at once."""
        pieces = []
        async with aclosing(self.pieces()) as parts:
            async for piece in parts:
                pieces.append(piece)
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        thought = "".join(piece.thought for piece in pieces)
        text = "".join(piece.text for piece in pieces)
        return replace(
            pieces[-1], text=text, tokens=tokens, thought=thought, prompt=pieces[0].prompt
        )
