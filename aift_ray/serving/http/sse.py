"""Several answers at once, as a whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response, StreamingResponse

from aift_ray.serving.answer import Answer
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.detokenizer import TextDelta
from aift_ray.serving.http.openai_objects import ResponseBuilder


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, Any]:
    """OpenAI's usage object."""
    made = sum(answer.tokens for answer in answers)
    thought = sum(answer.thought_tokens for answer in answers)
    told: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": made,
        "total_tokens": prompt_tokens + made,
    }
    if thought:
        told["completion_tokens_details"] = {"reasoning_tokens": thought}
    return told


async def all_of(answers: Sequence[Answer]) -> list[TextDelta]:
    """Every answer whole; where one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(answer.whole()) for answer in answers]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task, answer in zip(tasks, answers, strict=True):
            task.cancel()
            answer.cancel()


async def merged(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, TextDelta]]:
    """Pieces of all answers in the order in which they come, with the index of their answer."""
    queue: asyncio.Queue[tuple[int, TextDelta | Exception]] = asyncio.Queue()

    async def follow(index: int, answer: Answer) -> None:
        try:
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    queue.put_nowait((index, piece))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.ensure_future(follow(*pair)) for pair in enumerate(answers)]
    try:
        open_answers = len(tasks)
        while open_answers:
            index, piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            open_answers -= piece.finish is not None
            yield index, piece
    finally:
        for task, answer in zip(tasks, answers, strict=True):
            task.cancel()
            answer.cancel()


async def events(
    answers: Sequence[Answer], form: ResponseBuilder, prompt_tokens: int, tells_usage: bool
) -> AsyncGenerator[bytes]:
    """The events of a stream; an error in its midst is the last event."""
    extra: dict[str, Any] = {"usage": None} if tells_usage else {}
    opened: set[int] = set()
    async with aclosing(merged(answers)) as pieces:
        async for index, piece in pieces:
            for chunk in form.chunks(index, piece, first=index not in opened):
                yield event(chunk | extra)
            opened.add(index)
    if tells_usage:
        yield event(form.head() | {"choices": [], "usage": usage(prompt_tokens, answers)})
    yield b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


async def begun(events_: AsyncGenerator[bytes]) -> Response:
    """A streaming response whose first event is there; what fails before it gets its status."""
    first = await anext(events_)

    async def rest() -> AsyncGenerator[bytes]:
        async with aclosing(events_) as remaining:
            yield first
            try:
                async for each in remaining:
                    yield each
            except ApiError as error:
                yield event(error.body())

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(rest(), media_type="text/event-stream", headers=headers)
