"""Prompts that begin as earlier ones did: computed once for an adapter's content, same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from aift_ray.serving.engines.interface import Request, Token
from aift_ray.serving.engines.transformers import admission, prefix_cache, scheduler
from aift_ray.serving.engines.transformers.kv_cache import States
from aift_ray.serving.engines.transformers.prefix_cache import LEAST, Prefixes
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from tests.serving.conftest import load, write_adapter
from tests.serving.engines.transformers.test_transformers_engine import (
    answer,
    generated,
    ids,
    prompt,
    request,
    together,
    windowed,
)


@pytest.fixture
def keeping() -> Iterator[TransformersEngine]:
    """An engine that keeps what it has computed."""
    made = TransformersEngine(load(), slots=6, max_queue=8, prefix_memory=2**28)
    yield made
    made.close()


def reused(engine: TransformersEngine, asked: list[Request]) -> tuple[list[list[int]], int]:
    """The answers, and how many tokens of the prompts were not computed."""
    before = engine.figures().reused_tokens
    told = [ids(tokens) for tokens in together(engine, asked)]
    return told, engine.figures().reused_tokens - before


def test_each_turn_of_a_conversation_computes_only_what_is_new(
    keeping: TransformersEngine, plain: Any
) -> None:
    said = prompt(0, 40)
    computed = 0
    for turn in range(4):
        [told], found = reused(keeping, [request(said)])
        assert told == generated(plain, said)
        assert found == computed
        # all but the last token of the answer, which nobody has fed yet
        computed = len(said) + len(told) - 1
        said = said + told + prompt(turn + 1, 5)


def test_the_last_token_of_a_prompt_is_always_computed(
    keeping: TransformersEngine, plain: Any
) -> None:
    said = prompt(0, 40)
    for expected in (0, 39):
        told, found = reused(keeping, [request(said)])
        assert told == [generated(plain, said)]
        assert found == expected


def test_less_than_a_few_tokens_are_not_worth_it(keeping: TransformersEngine) -> None:
    start = prompt(0, LEAST - 1)
    reused(keeping, [request(start + prompt(1, 30))])
    assert reused(keeping, [request(start + prompt(2, 30))])[1] == 0
    reused(keeping, [request([*start, 7, *prompt(3, 30)])])
    assert reused(keeping, [request([*start, 7, *prompt(4, 30)])])[1] == LEAST


@pytest.mark.parametrize("piece", [512, 24])
def test_uneven_prompts_that_share_a_beginning_are_read_together(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = windowed()
    engine = TransformersEngine(model, slots=8, max_queue=8, prefix_memory=2**28)
    monkeypatch.setattr(scheduler, "PIECE", piece)
    monkeypatch.setattr(admission, "PIECE", piece)
    start = prompt(99, 50, 200)
    together(engine, [request(start, 3)])
    asked = [request(start[: 50 - 9 * at] + prompt(at, 2 + 5 * at, 200), 20) for at in range(4)]
    # one shorter than the others' common beginning, one that shares nothing
    asked += [request(start[:20], 20), request(prompt(5, 30, 200), 20)]
    told, found = reused(engine, asked)
    assert told == [generated(model, each.prompt, 20) for each in asked]
    assert found > 0
    told, found = reused(engine, asked)
    assert told == [generated(model, each.prompt, 20) for each in asked]
    assert found >= sum(len(each.prompt) for each in asked) / 2
    engine.close()


def test_only_the_same_adapters_keys_are_reused(
    keeping: TransformersEngine, plain: Any, adapters: dict[str, Path]
) -> None:
    name, folder = next(iter(adapters.items()))
    said = prompt(0, 60)
    adapted = generated(PeftModel.from_pretrained(load(), folder).eval(), said)
    assert adapted != generated(plain, said)

    async def run() -> list[tuple[list[int], int]]:
        found = []

        async def ask(adapter: str) -> None:
            told: list[Token] = await answer(keeping, request(said, adapter=adapter))
            found.append((ids(told), keeping.figures().reused_tokens))

        await ask("")
        await keeping.load(name, str(folder))
        await ask(name)
        # the same content by another name, also when it comes again
        await keeping.load("again", str(folder))
        await ask("again")
        await keeping.unload(name)
        await keeping.load(name, str(folder))
        await ask(name)
        return found

    told = asyncio.run(run())
    assert [each for each, _ in told] == [generated(plain, said), adapted, adapted, adapted]
    assert [found for _, found in told] == [0, 0, 59, 118]


def test_other_weights_under_the_same_name_find_nothing(
    keeping: TransformersEngine, tmp_path: Path
) -> None:
    said = prompt(0, 60)
    for seed in (5, 6):
        folder = write_adapter(tmp_path / str(seed), seed)

        async def run(folder: Path = folder) -> list[int]:
            await keeping.load("name", str(folder))
            told = ids(await answer(keeping, request(said, adapter="name")))
            await keeping.unload("name")
            return told

        expected = generated(PeftModel.from_pretrained(load(), folder).eval(), said)
        assert asyncio.run(run()) == expected
        assert keeping.figures().reused_tokens == 0


def test_what_a_client_that_left_has_had_computed_is_kept(keeping: TransformersEngine) -> None:
    said = prompt(0, 40)

    async def leave() -> None:
        async for _ in keeping.submit(request(said, 500)):
            break

    asyncio.run(leave())
    assert reused(keeping, [request(said)])[1] == 39


def test_the_memory_is_held_and_the_longest_unused_goes_first() -> None:
    model = load()
    config = model.config
    a_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    # room for three requests of 49 cached tokens: 40, and an answer whose last is not fed
    engine = TransformersEngine(model, 4, 8, prefix_memory=3 * 49 * a_token)
    kept = engine._prefixes
    said = [prompt(seed, 40) for seed in range(4)]
    for each in said[:3]:
        together(engine, [request(each, 10)])
    assert reused(engine, [request(said[0], 10)])[1] == 39
    together(engine, [request(said[3], 10)])
    assert [len(prefix.slots) for prefix in kept._kept] == [49] * 3
    assert not kept._store.free
    assert [kept.find("", each)[1] for each in said] == [39, 0, 39, 39]
    # larger than all the memory
    together(engine, [request(prompt(9, 300), 2)])
    assert [kept.find("", each)[1] for each in [*said, prompt(9, 300)]] == [39, 0, 39, 39, 0]
    engine.close()


def test_no_more_requests_are_kept_than_a_prompt_can_be_held_against(
    keeping: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_cache, "MOST", 2)
    said = [prompt(seed, 40) for seed in range(3)]
    for each in said:
        together(keeping, [request(each, 2)])
    assert [keeping._prefixes.find("", each)[1] for each in said] == [0, 39, 39]


def test_memory_that_is_not_to_be_had_is_told_and_costs_no_answer(
    plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # more than there are addresses
    engine = TransformersEngine(load(), 4, 8, prefix_memory=2**52)
    said = prompt(0, 40)
    for _ in range(2):
        assert reused(engine, [request(said)]) == ([generated(plain, said)], 0)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "serving.prefix_memory is not to be had"
    ]
    engine.close()


def test_no_memory_keeps_nothing(engine: TransformersEngine) -> None:
    assert [reused(engine, [request(prompt(0, 40))])[1] for _ in range(2)] == [0, 0]
    assert Prefixes(0).find("", prompt(0)) == (None, 0)


def test_what_comes_and_goes_never_takes_the_slots_of_what_stays() -> None:
    generator = torch.Generator().manual_seed(0)

    def states(tokens: int) -> States:
        # layers need not be alike
        sizes = {0: (2, 4), 3: (1, 8)}
        return {
            number: (
                torch.randn(heads, tokens, size, generator=generator),
                torch.randn(heads, tokens, size, generator=generator),
            )
            for number, (heads, size) in sizes.items()
        }

    room = 200
    kept = Prefixes(sum(each.nbytes for pair in states(room).values() for each in pair))
    put: dict[tuple[int, ...], States] = {}
    for seed in range(100):
        tokens = prompt(seed, 16 + seed * 7 % 60)
        put[tuple(tokens)] = states(len(tokens))
        kept.keep("", tokens, put[tuple(tokens)])
        slots = torch.cat([prefix.slots for prefix in kept._kept]).tolist()
        assert len(set(slots)) == len(slots) == room - kept._store.free
        assert set(slots) <= set(range(room))
    assert len(kept._kept) > 2
    for prefix in [*kept._kept]:
        found = kept.use(prefix, len(prefix.tokens) - 1)
        for number, pair in put[tuple(prefix.tokens)].items():
            for told, expected in zip(found[number], pair, strict=True):
                assert torch.equal(told, expected[:, :-1])
