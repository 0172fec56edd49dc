"""Keys and values have a budget: what does not fit waits, and never ends the answers of others."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.config import ServeConfig, ServingConfig
from aift_ray.errors import ConfigError
from aift_ray.serving.engines import engine_select
from aift_ray.serving.engines.interface import EngineError, SamplingParams
from aift_ray.serving.engines.transformers.kv_cache import AHEAD, RowsCache, RowsLayer
from aift_ray.serving.engines.transformers.kv_memory import budget, is_out_of_memory, token_bytes
from aift_ray.serving.engines.transformers.scheduler import Scheduler
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from tests.conftest import SHIPPED
from tests.serving.conftest import Site, load
from tests.serving.engines.transformers.test_transformers_engine import (
    answer,
    generated,
    ids,
    prompt,
    request,
    together,
)

# of the shipped model in fp32: keys and values of 4 layers of 2 heads of 64 numbers
TOKEN = 2 * 4 * 2 * 64 * 4


@pytest.fixture(scope="module")
def model() -> Any:
    return load()


@pytest.fixture
def tight(model: Any) -> Iterator[Callable[[int], TransformersEngine]]:
    """An engine with memory for so many tokens, which watches what it holds."""
    made: list[TransformersEngine] = []

    def make(tokens: int) -> TransformersEngine:
        made.append(TransformersEngine(load(), 8, 16, 0, tokens * TOKEN))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and allocated tokens of each step."""
    found: list[tuple[int, int]] = []
    forward = Scheduler._forward

    def watched(batch: Scheduler, *args: Any) -> torch.Tensor:
        logits = forward(batch, *args)
        caches = [batch._cache, batch._read]
        layers = [cache._rows[0] for cache in caches if cache._rows[0].is_initialized]
        keys = [(layer._buffers or [layer.keys])[0] for layer in layers]
        found.append(
            (len(batch.rows) + len(batch.reading), sum(k.shape[0] * k.shape[2] for k in keys))
        )
        return logits

    monkeypatch.setattr(Scheduler, "_forward", watched)
    return found


def test_a_token_takes_what_its_keys_and_values_take(model: Any) -> None:
    assert token_bytes(model) == TOKEN
    assert budget(model, 1000 * TOKEN + 1, 0) == 1000
    assert budget(model, None, 0) > 10_000, "half of what is free on this machine"


def test_answers_are_the_same_with_room_for_few_and_never_more_is_held(
    model: Any, tight: Callable[[int], TransformersEngine], held: list[tuple[int, int]]
) -> None:
    engine = tight(400)
    asked = [prompt(seed, 20 + 5 * seed) for seed in range(5)]
    found = together(engine, [request(each, 60) for each in asked])
    assert [ids(each) for each in found] == [generated(model, each, 60) for each in asked]
    rows = [number for number, _ in held]
    # three fit at first, and as they grow two
    assert max(rows) > min(rows[10:-60])
    assert max(tokens for _, tokens in held) <= 400
    assert engine.figures().running == engine.figures().waiting == 0


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that all caches together have room for, at each change of one."""
    caches: weakref.WeakSet[RowsCache] = weakref.WeakSet()
    found: list[int] = []
    make, update = RowsCache.__init__, RowsLayer.update

    def made(cache: RowsCache, config: Any) -> None:
        make(cache, config)
        caches.add(cache)

    def updated(layer: RowsLayer, *args: Any, **kwargs: Any) -> Any:
        told = update(layer, *args, **kwargs)
        firsts = [cache._rows[0] for cache in caches if cache._rows[0].is_initialized]
        keys = [(each._buffers or [each.keys])[0] for each in firsts]
        found.append(sum(each.shape[0] * each.shape[2] for each in keys))
        return told

    monkeypatch.setattr(RowsCache, "__init__", made)
    monkeypatch.setattr(RowsLayer, "update", updated)
    return found


def test_prompts_whose_tokens_are_scored_take_no_more_than_the_budget(
    model: Any, tight: Callable[[int], TransformersEngine], allocated: list[int]
) -> None:
    engine = tight(500)
    allocated.clear()
    asked = [prompt(seed, 150 + 10 * seed) for seed in range(5)]
    scored = [replace(request(each, 30), scores=True, top_logprobs=1) for each in asked]
    found = together(engine, [request(prompt(9, 40), 60), *scored])
    assert [ids(each) for each in found[1:]] == [generated(model, each, 30) for each in asked]
    assert 300 < max(allocated) <= 500


def test_an_answer_that_waits_in_between_keeps_its_seed_and_its_penalties(
    tight: Callable[[int], TransformersEngine], held: list[tuple[int, int]]
) -> None:
    sampling = SamplingParams(temperature=0.9, seed=7, repetition_penalty=1.2, presence_penalty=0.5)
    asked = [request(prompt(seed, 30), 60, sampling=sampling) for seed in range(3)]
    roomy = tight(4000)
    alone = [together(roomy, [each])[0] for each in asked]
    held.clear()
    found = together(tight(330), asked)
    assert [ids(each) for each in found] == [ids(each) for each in alone]
    read = [tokens for rows, tokens in held if rows > 1]
    assert read, "some were worked on together"


def test_the_context_is_what_the_memory_holds_and_more_is_a_400(
    tmp_path: Path, adapters: dict[str, Path]
) -> None:
    site = Site(tmp_path, {}, kv_cache_memory="2MiB")
    try:
        tokens = 2 * 2**20 // TOKEN
        context = tokens - AHEAD - 1
        assert site.service.engine.context == context
        body = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": context}
        refused = site.send("POST", "/v1/completions", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert f"context of {context}" in refused.json()["error"]["message"]
        done = site.send("POST", "/v1/completions", json=body | {"max_tokens": 8})
        assert done.status_code == 200
    finally:
        site.close()


def test_memory_for_no_request_is_refused_with_what_is_needed(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"serving\.kv_cache_memory: 0 MiB hold 10 tokens"):
        TransformersEngine(model, 4, 4, 0, 10 * TOKEN)
    with pytest.raises(ConfigError, match=r"kv_cache_memory.*for example 22GB"):
        ServeConfig(serving=ServingConfig(kv_cache_memory="4"))
    asked = ServeConfig(engine="vllm", serving=ServingConfig(kv_cache_memory="4GiB"))
    found = engine_select.refusals(asked, str(SHIPPED), True)
    assert any(each.remedy == "use vllm.kv_cache_memory" for each in found if "kv" in each.where)


def full(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[Scheduler, list[Any]], bool]
) -> list[int]:
    """Have the device run out of memory in some forward passes; the rows of each that did."""
    forward, failed = Scheduler._forward, []

    def limited(batch: Scheduler, ids_: Any, places: Any, mask: Any, cache: Any, rows: Any) -> Any:
        if when(batch, rows):
            failed.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(batch, ids_, places, mask, cache, rows)

    monkeypatch.setattr(Scheduler, "_forward", limited)
    return failed


def test_memory_that_is_full_after_all_costs_nobody_an_answer(
    model: Any, tight: Callable[[int], TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = full(monkeypatch, lambda _, rows: len(rows) > 2)
    engine = tight(100_000)
    asked = [prompt(seed, 20 + 3 * seed) for seed in range(5)]
    found = together(engine, [request(each, 20) for each in asked])
    assert [ids(each) for each in found] == [generated(model, each, 20) for each in asked]
    assert failed
    assert engine._limit < engine.budget, "fewer are held at once for a while"


def test_a_request_that_can_not_be_computed_fails_alone(
    model: Any, tight: Callable[[int], TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = prompt(99, 60)
    full(monkeypatch, lambda _, rows: any(row.request.prompt == large for row in rows))
    engine = tight(100_000)
    asked = [prompt(seed, 20) for seed in range(3)]

    async def all_at_once() -> list[Any]:
        said = [*asked[:2], large, asked[2]]
        jobs = (answer(engine, request(each, 30)) for each in said)
        return list(await asyncio.gather(*jobs, return_exceptions=True))

    first, second, wrong, third = asyncio.run(all_at_once())
    assert isinstance(wrong, EngineError)
    assert "out of memory" in str(wrong)
    assert [ids(each) for each in (first, second, third)] == [
        generated(model, each, 30) for each in asked
    ]
    assert engine.alive()
    assert engine._limit == engine.budget


def test_memory_that_is_full_between_steps_loses_no_token(
    model: Any, tight: Callable[[int], TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, times = Scheduler.settle, iter([False, False, True, True, False, True])

    def limited(batch: Scheduler) -> None:
        if next(times, False) and len(batch.rows) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        settle(batch)

    monkeypatch.setattr(Scheduler, "settle", limited)
    engine = tight(100_000)
    asked = [prompt(seed, 20) for seed in range(4)]
    found = together(engine, [request(each, 10 + 5 * at) for at, each in enumerate(asked)])
    wanted = [generated(model, each, 10 + 5 * at) for at, each in enumerate(asked)]
    assert [ids(each) for each in found] == wanted


def test_only_errors_of_memory_are_taken_for_such() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("index out of range"))
    assert not is_out_of_memory(ValueError("out of memory"))
