"""Requests whose prompts are scored are alone in vLLM, without waiting forever."""

from __future__ import annotations

import asyncio

from aift_ray.serving.engines.vllm.scoring_turns import Turns


async def entered(*tasks: asyncio.Task[None]) -> list[bool]:
    for _ in range(3):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def test_one_that_is_alone_waits_for_those_before_it_and_holds_those_behind_it() -> None:
    async def act() -> None:
        turns = Turns()
        first, alone, second, behind = (
            asyncio.create_task(turns.enter(alone)) for alone in (False, True, True, False)
        )
        assert await entered(first, alone, second, behind) == [True, False, False, False]
        turns.leave()
        assert await entered(alone, second, behind) == [True, False, False]
        turns.leave()
        assert await entered(second, behind) == [True, False]
        # its prompt is scored, and it goes on beside others
        turns.share()
        assert await entered(behind) == [True]
        last = asyncio.create_task(turns.enter(True))
        turns.leave()
        assert await entered(last) == [False]
        turns.leave()
        assert await entered(last) == [True]

    asyncio.run(act())
