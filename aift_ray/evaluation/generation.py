"""Answers written by the engine that serves: continuous batching, prompts that begin alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aift_ray.serving.engines.interface import Request, SamplingParams
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from aift_ray.tasks.scores import cut_at
from aift_ray.tasks.task_prompts import ItemEncoder

_PREFIX_MEMORY = 256 * 2**20
# tokens between two looks for a stop string in the text
_LOOK = 4


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer.

    Attributes:
        text: up to the stop string that ended it.
        tokens: that were made.
        finish: stop, or length where the limit of tokens ended it.
    """

    text: str
    tokens: int
    finish: str


def write(
    model: Any,
    encoder: ItemEncoder,
    prompts: Sequence[list[int]],
    max_tokens: int,
    stop: Sequence[str],
    slots: int,
    done: Callable[[int, GeneratedAnswer], None],
) -> None:
    """Greedy answers to `prompts`; `done` gets the place of each with its answer.

    Args:
        slots: answers that are written at a time.
    """
    order = sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), prompts[at]))

    async def one(engine: TransformersEngine, at: int, free: asyncio.Semaphore) -> None:
        async with free:
            request = Request(
                prompts[at], max_tokens, encoder.stop_ids, SamplingParams(temperature=0.0)
            )
            done(at, await _answer(engine, request, encoder, stop))

    async def every() -> None:
        engine = TransformersEngine(model, slots, 2 * slots, _PREFIX_MEMORY)
        try:
            free = asyncio.Semaphore(2 * slots)
            async with asyncio.TaskGroup() as group:
                for at in order:
                    group.create_task(one(engine, at, free))
        finally:
            engine.close()

    try:
        asyncio.run(every())
    except* Exception as errors:
        raise errors.exceptions[0] from None


async def _answer(
    engine: TransformersEngine, request: Request, encoder: ItemEncoder, stop: Sequence[str]
) -> GeneratedAnswer:
    ids: list[int] = []
    stream = engine.submit(request)
    async for token in stream:
        if token.finish == "stop":
            break
        ids.append(token.id)
        if stop and len(ids) % _LOOK == 0 and (cut := cut_at(encoder.decode(ids), stop)):
            stream.cancel()
            return GeneratedAnswer(cut[0], len(ids), "stop")
        if token.finish:
            found = cut_at(encoder.decode(ids), stop)
            text = found[0] if found else encoder.decode(ids)
            return GeneratedAnswer(text, len(ids), "stop" if found else "length")
    text = encoder.decode(ids)
    found = cut_at(text, stop)
    return GeneratedAnswer(found[0] if found else text, len(ids), "stop")
