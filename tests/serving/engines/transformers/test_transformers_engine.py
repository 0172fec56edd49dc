"""The engine: every request gets what it would get alone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from aift_ray.errors import ModelError
from aift_ray.serving.engines.interface import (
    EngineError,
    QueueFull,
    Request,
    SamplingParams,
    Token,
)
from aift_ray.serving.engines.transformers import admission, scheduler
from aift_ray.serving.engines.transformers import transformers_engine as engine_module
from aift_ray.serving.engines.transformers.kv_cache import RowsCache
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from aift_ray.utils import malloc_trim
from tests.serving.conftest import load

GREEDY = SamplingParams(temperature=0)


def prompt(seed: int, length: int = 12, vocabulary: int = 5000) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocabulary, (length,), generator=generator).tolist()


def request(ids: list[int], tokens: int = 12, **values: Any) -> Request:
    stop_ids = values.pop("stop_ids", frozenset())
    return Request(ids, tokens, stop_ids, values.pop("sampling", GREEDY), **values)


async def answer(engine: TransformersEngine, asked: Request) -> list[Token]:
    return [token async for token in engine.submit(asked)]


def together(engine: TransformersEngine, asked: list[Request]) -> list[list[Token]]:
    async def all_at_once() -> list[list[Token]]:
        return list(await asyncio.gather(*(answer(engine, each) for each in asked)))

    return asyncio.run(all_at_once())


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def generated(model: Any, ids_: list[int], tokens: int = 12, **options: Any) -> list[int]:
    """What plain `generate` says."""
    output = model.generate(
        torch.tensor([ids_]),
        attention_mask=torch.ones(1, len(ids_), dtype=torch.long),
        max_new_tokens=tokens,
        pad_token_id=0,
        **({"do_sample": False} | options),
    )
    found: list[int] = output[0, len(ids_) :].tolist()
    return found


def test_greedy_answers_are_those_of_generate_alone_and_in_a_batch(
    engine: TransformersEngine, plain: Any
) -> None:
    asked = [request(prompt(seed, 3 + 9 * seed), 6 + 5 * seed) for seed in range(7)]
    expected = [generated(plain, each.prompt, each.max_tokens) for each in asked]
    assert [ids(together(engine, [each])[0]) for each in asked] == expected
    assert [ids(tokens) for tokens in together(engine, asked)] == expected


def test_of_those_that_wait_the_ones_alike_in_length_are_read_together(
    engine: TransformersEngine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    begin, waits = scheduler.Scheduler.begin, threading.Event()

    def watched(self: scheduler.Scheduler, rows: list[scheduler.Row]) -> None:
        read.append(sorted(len(row.tokens) for row in rows))
        begin(self, rows)

    monkeypatch.setattr(scheduler.Scheduler, "begin", watched)
    asked = [request(prompt(seed, length)) for seed, length in enumerate((200, 20, 210, 24))]

    async def all_at_once() -> list[list[Token]]:
        # the engine does nothing else until all of them wait
        held = asyncio.ensure_future(engine._between_steps(waits.wait))
        await asyncio.sleep(0)
        jobs = [asyncio.ensure_future(answer(engine, each)) for each in asked]
        await asyncio.sleep(0)
        waits.set()
        await held
        return list(await asyncio.gather(*jobs))

    told = asyncio.run(all_at_once())
    assert [ids(tokens) for tokens in told] == [generated(plain, each.prompt) for each in asked]
    assert read == [[200, 210], [20, 24]]


def test_long_prompts_are_read_in_pieces_to_the_same_answer(
    engine: TransformersEngine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PIECE", 7)
    asked = [request(prompt(seed, 50 - seed)) for seed in range(3)]
    told = together(engine, asked)
    assert [ids(tokens) for tokens in told] == [generated(plain, each.prompt) for each in asked]


def test_prompts_that_wait_together_are_read_together(
    engine: TransformersEngine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PIECE", 40)
    monkeypatch.setattr(scheduler, "PIECE", 40)
    read: list[int] = []
    begin = scheduler.Scheduler.begin

    def counted(self: Any, rows: Any) -> None:
        read.append(len(rows))
        begin(self, rows)

    monkeypatch.setattr(scheduler.Scheduler, "begin", counted)
    first = request(prompt(0), 30)
    asked = [first, *(request(prompt(seed, length)) for seed, length in enumerate((9, 13, 60)))]
    # one that is finished with its first token, in the midst of those read with it
    asked.insert(2, request(prompt(7), 1))
    told = together(engine, asked)
    expected = [generated(plain, each.prompt, each.max_tokens) for each in asked]
    assert [ids(tokens) for tokens in told] == expected
    assert max(read) > 1
    assert read[-1] == 1


def test_a_burst_is_read_before_a_step_and_a_long_prompt_between_steps(
    engine: TransformersEngine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (admission, scheduler):
        monkeypatch.setattr(module, "PIECE", 20)
    order: list[str] = []
    for name in ("read", "step"):
        real = getattr(scheduler.Scheduler, name)

        def noted(self: Any, name: str = name, real: Any = real) -> Any:
            order.append(name)
            return real(self)

        monkeypatch.setattr(scheduler.Scheduler, name, noted)
    # no two of them fit a piece
    asked = [request(prompt(seed, length), 4) for seed, length in enumerate((15, 16, 50))]

    async def at_once() -> list[list[Token]]:
        held = threading.Event()
        waiting = asyncio.ensure_future(engine._between_steps(held.wait))
        await asyncio.sleep(0)
        streams = [engine.submit(each) for each in asked]
        held.set()
        await waiting
        return [[token async for token in stream] for stream in streams]

    told = asyncio.run(at_once())
    assert [ids(each) for each in told] == [generated(plain, each.prompt, 4) for each in asked]
    assert order[:7] == ["read", "read", "step", "read", "step", "read", "step"]


def test_a_batch_of_base_and_two_adapters_equals_each_alone(
    plain: Any, adapters: dict[str, Path]
) -> None:
    engine = TransformersEngine(load(), slots=6, max_queue=8)
    names = ["", *adapters, *adapters, ""]
    asked = [request(prompt(seed), adapter=name) for seed, name in enumerate(names)]
    expected = []
    for each in asked:
        model = PeftModel.from_pretrained(load(), adapters[each.adapter]) if each.adapter else plain
        expected.append(generated(model.eval(), each.prompt))
    assert len({tuple(each) for each in expected}) == len(expected)

    async def run() -> list[list[Token]]:
        for name, folder in adapters.items():
            await engine.load(name, str(folder))
        return list(await asyncio.gather(*(answer(engine, each) for each in asked)))

    assert [ids(tokens) for tokens in asyncio.run(run())] == expected
    for name in adapters:
        asyncio.run(engine.unload(name))
    assert [ids(t) for t in together(engine, asked[:1])] == expected[:1]
    engine.close()


def test_an_adapter_of_another_shape_is_refused_and_the_engine_goes_on(
    engine: TransformersEngine, tiny_model: Path, tmp_path: Path, plain: Any
) -> None:
    from tests.serving.conftest import write_adapter

    folder = write_adapter(tmp_path / "other", 0, tiny_model)
    with pytest.raises(ModelError, match="the model has"):
        asyncio.run(engine.load("other", str(folder)))
    asked = request(prompt(0))
    assert ids(together(engine, [asked])[0]) == generated(plain, asked.prompt)


def windowed() -> Any:
    """A random Gemma 3 with sliding windows of 8 tokens."""
    config = Gemma3TextConfig(
        vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8, layer_types=[
            "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"
        ],
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_sliding_windows_hold_in_a_batch_of_uneven_rows() -> None:
    model = windowed()
    engine = TransformersEngine(model, slots=8, max_queue=8)
    asked = [request(prompt(seed, 2 + 5 * seed, 200), 20) for seed in range(5)]
    told = together(engine, asked)
    assert [ids(t) for t in told] == [generated(model, each.prompt, 20) for each in asked]
    engine.close()


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(engine: TransformersEngine) -> None:
    hot = SamplingParams(temperature=1.3, top_p=0.95, top_k=40, min_p=0.01, seed=7)
    asked = request(prompt(1), 20, sampling=hot)
    others = [request(prompt(seed, 30), 25, sampling=SamplingParams()) for seed in range(3)]
    alone, in_batch = together(engine, [asked])[0], together(engine, [*others, asked])[-1]
    assert ids(alone) == ids(in_batch)
    assert ids(alone) != ids(
        together(engine, [request(prompt(1), 20, sampling=SamplingParams())])[0]
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.7}, {"temperature": 0.7, "top_k": 0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_p": 0.5}, {"top_p": 0.5, "top_k": 0}),
        ({"min_p": 0.2}, {"min_p": 0.2, "top_k": 0}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5, "top_k": 0}),
    ],
)
def test_sampling_draws_from_the_distribution_of_generate(
    engine: TransformersEngine, plain: Any, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    asked = request(prompt(3), 12, sampling=SamplingParams(**ours, seed=5))
    torch.manual_seed(5)
    expected = generated(plain, asked.prompt, do_sample=True, **theirs)
    assert ids(together(engine, [asked])[0]) == expected


def test_a_temperature_of_almost_nothing_takes_the_likeliest_token(
    engine: TransformersEngine, plain: Any
) -> None:
    for temperature in (5e-324, 1e-30, 1e-6):
        cold = request(prompt(4), sampling=SamplingParams(temperature=temperature))
        assert ids(together(engine, [cold])[0]) == generated(plain, cold.prompt)


def test_penalties_keep_an_answer_from_repeating_itself(engine: TransformersEngine) -> None:
    penalised = SamplingParams(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    told = ids(together(engine, [request([100] * 8, 40, sampling=penalised)])[0])
    plain_told = ids(together(engine, [request([100] * 8, 40)])[0])
    assert len(set(told)) > len(set(plain_told))


def test_a_stop_id_ends_an_answer_and_is_told_as_its_last_token(
    engine: TransformersEngine, plain: Any
) -> None:
    expected = generated(plain, prompt(0))
    stop = expected[4]
    told = together(engine, [request(prompt(0), stop_ids=frozenset([stop]))])[0]
    assert ids(told) == expected[: expected.index(stop) + 1]
    assert [token.finish for token in told] == [None] * (len(told) - 1) + ["stop"]


def test_logprobs_are_the_models_own(engine: TransformersEngine, plain: Any) -> None:
    asked = request(prompt(2), 4, top_logprobs=3, sampling=SamplingParams(temperature=0.5, seed=1))
    told = together(engine, [asked])[0]
    sequence = torch.tensor([asked.prompt + ids(told)])
    with torch.no_grad():
        expected = plain(sequence).logits[0].log_softmax(-1)
    for place, token in enumerate(told, len(asked.prompt) - 1):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
        likeliest = expected[place].topk(3)
        assert [id_ for id_, _ in token.top] == likeliest.indices.tolist()


def test_cancelling_frees_the_slot_at_once(engine: TransformersEngine) -> None:
    async def run() -> None:
        streams = [engine.submit(request(prompt(seed), 2000)) for seed in range(4)]
        waiting = engine.submit(request(prompt(9), 3))
        while engine.figures().running < 4:
            await asyncio.sleep(0.01)
        assert engine.figures().waiting == 1
        streams[0].cancel()
        assert len([token async for token in waiting]) == 3
        for stream in streams:
            stream.cancel()
        while engine.figures().running:
            await asyncio.sleep(0.01)
        assert engine.figures().cached_tokens == 0

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_full_queue_refuses(engine: TransformersEngine) -> None:
    async def run() -> None:
        streams = [engine.submit(request(prompt(seed), 500)) for seed in range(4 + 8)]
        with pytest.raises(QueueFull):
            engine.submit(request(prompt(0)))
        for stream in streams:
            stream.cancel()

    asyncio.run(run())


def test_a_failed_step_fails_its_requests_and_the_next_ones_are_answered(
    engine: TransformersEngine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(RowsCache, "join", fail)
        with pytest.raises(EngineError, match="out of memory"):
            together(engine, [request(prompt(0))])
    assert ids(together(engine, [request(prompt(0))])[0]) == generated(plain, prompt(0))


def test_freed_memory_is_given_back_while_it_works(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    give_back = malloc_trim.trim

    def counted() -> None:
        give_back()
        given.append(1)

    monkeypatch.setattr(malloc_trim, "trim", counted)
    monkeypatch.setattr(engine_module, "TRIM", 1e9)
    together(engine, [request(prompt(0), 3)])
    assert not given
    monkeypatch.setattr(engine_module, "TRIM", 0.0)
    together(engine, [request(prompt(1), 3)])
    assert given


def test_logits_that_are_no_numbers_fail_one_request_alone(
    engine: TransformersEngine, plain: Any
) -> None:
    class Broken:
        schema = ""

        def begin(self) -> Broken:
            return self

        def allow(self, logits: torch.Tensor) -> None:
            logits[:] = float("nan")

        def advance(self, token: int) -> None: ...

    bad = request(prompt(0), sampling=SamplingParams(), grammar=Broken())

    async def run() -> list[Any]:
        asked = (answer(engine, each) for each in (request(prompt(1)), bad))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    good, failed = asyncio.run(run())
    assert ids(good) == generated(plain, prompt(1))
    assert isinstance(failed, EngineError)
