"""A model's answer as what it is made of: thought, text and calls, in their order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from aift_ray.serving.chat import Begun
from aift_ray.serving.detokenizer import TextDelta
from aift_ray.serving.http.sse import all_of
from aift_ray.serving.tools import Call, CallReader

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Parts:
    """What is said anew.

    Attributes:
        finish: set on the last.
        stop: the stop string that ended it.
    """

    thought: str
    text: str
    calls: list[Call]
    finish: Finish | None
    stop: str | None


async def whole(begun: Begun) -> Parts:
    """All of an answer; ApiError where it fails."""
    [piece] = await all_of(begun.answers)
    return _parts(piece, CallReader(begun.names) if begun.names else None)


async def streamed(begun: Begun) -> AsyncGenerator[Parts]:
    """The same as it comes."""
    reader = CallReader(begun.names) if begun.names else None
    async with aclosing(begun.answers[0].pieces()) as pieces:
        async for piece in pieces:
            yield _parts(piece, reader)


def _parts(piece: TextDelta, reader: CallReader | None) -> Parts:
    calls: list[Call] = []
    if reader:
        piece, calls = reader.push(piece)
    return Parts(piece.thought, piece.text, calls, piece.finish, piece.stop)
