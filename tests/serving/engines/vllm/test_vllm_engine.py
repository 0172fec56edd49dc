"""The engine vllm, as a server on Ray in vLLM's own environment, against plain `generate`."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from aift_ray.models.japanese_model import JapaneseModel
from tests.conftest import SHIPPED
from tests.serving.conftest import VllmSite, load, write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PROMPTS = ("昔々、あるところに", "今日の天気は", "日本の首都は東京で、")
LONG = "図書館で借りた本を返しに行く途中で、古い友人に会いました。" * 14


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, adapters: dict[str, Path]
) -> Iterator[VllmSite]:
    """Base and two adapters; others may be loaded from its folder `shelf`."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "shelf").mkdir()
    made = VllmSite(folder, adapters, "--serving.adapter_folder", str(folder / "shelf"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def models(adapters: dict[str, Path]) -> dict[str, Any]:
    """What is served, as transformers and PEFT load it."""
    found = {"hina-4m": load()}
    for name, folder in adapters.items():
        found[name] = PeftModel.from_pretrained(load(), folder).eval()
    return found


def generated(model: Any, prompt: str, tokens: int) -> str:
    """The greedy answer of plain `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def ask(served: VllmSite, *bodies: dict[str, Any]) -> list[Any]:
    """The answers to requests that are sent at once."""

    async def sent() -> list[Any]:
        plain: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
        async with served.client() as client:
            posts = (client.post("/v1/completions", json=plain | body) for body in bodies)
            return [response.json() for response in await asyncio.gather(*posts)]

    return served.run(sent())


def texts(answers: list[Any]) -> list[str]:
    return [answer["choices"][0]["text"] for answer in answers]


def streamed(served: VllmSite, body: dict[str, Any]) -> str:
    told = served.send("POST", "/v1/completions", json=body | {"stream": True}).text
    events = [json.loads(e.removeprefix("data: ")) for e in told.split("\n\n") if "{" in e]
    return "".join(event["choices"][0]["text"] for event in events)


def test_base_and_adapters_answer_as_generate_alone_in_a_batch_and_in_a_stream(
    served: VllmSite, models: dict[str, Any]
) -> None:
    bodies = [{"model": name, "prompt": prompt} for prompt in PROMPTS for name in models]
    expected = [generated(models[each["model"]], each["prompt"], 24) for each in bodies]
    assert len(set(expected)) == len(expected)
    assert texts(ask(served, *bodies)) == expected
    assert [texts(ask(served, body))[0] for body in bodies[:3]] == expected[:3]
    plain = {"max_tokens": 24, "temperature": 0}
    assert [streamed(served, plain | body) for body in bodies[:3]] == expected[:3]


def test_generate_says_what_generate_japanese_says(served: VllmSite) -> None:
    model = JapaneseModel("hina-4m", device=torch.device("cpu"), torch_dtype=torch.float32)
    model.load_model()
    model.load_tokenizer()
    asked = {"instruction": "丁寧に言ってください。", "input": "もう帰る。"}
    body = asked | {"max_new_tokens": 24, "do_sample": False}
    told = served.send("POST", "/generate", json=body).json()["text"]
    expected = model.generate_japanese(
        asked["instruction"], asked["input"], max_new_tokens=24, do_sample=False
    )
    assert told == expected


def test_a_prompt_that_came_before_is_not_computed_again_but_for_its_own_adapter(
    served: VllmSite, models: dict[str, Any]
) -> None:
    for number, (name, model) in enumerate(models.items()):
        body = {"model": name, "prompt": LONG}
        expected = generated(model, LONG, 24)
        before = served.figure("aift_reused_tokens")
        assert texts(ask(served, body)) == [expected]
        if number:
            # the base's and the other adapter's keys are of no use to it
            assert served.figure("aift_reused_tokens") == before
        before = served.figure("aift_reused_tokens")
        assert texts(ask(served, body)) == [expected]
        assert served.figure("aift_reused_tokens") >= before + 128


def test_other_weights_under_the_same_name_answer_for_themselves(
    served: VllmSite, tmp_path: Path
) -> None:
    shelf = served.key_file.parent / "shelf" / "k"
    for seed in (11, 12, 11):
        folder = tmp_path / str(seed)
        if not folder.exists():
            write_adapter(folder, seed)
        shutil.copytree(folder, shelf, dirs_exist_ok=True)
        loaded = served.send("POST", "/v1/load_lora_adapter", json={"lora_name": "k"})
        assert loaded.status_code == 200, loaded.text
        expected = generated(PeftModel.from_pretrained(load(), folder).eval(), LONG, 24)
        assert texts(ask(served, *[{"model": "k", "prompt": LONG}] * 2)) == [expected] * 2
        gone = served.send("POST", "/v1/unload_lora_adapter", json={"lora_name": "k"})
        assert gone.status_code == 200
        [answer] = ask(served, {"model": "k", "prompt": LONG})
        assert answer["error"]["code"] == "model_not_found"


def test_an_adapter_that_vllm_can_not_take_is_refused_and_the_server_goes_on(
    served: VllmSite, tiny_model: Path, models: dict[str, Any]
) -> None:
    folder = served.key_file.parent / "shelf" / "wide"
    write_adapter(folder, 5, r=128)
    response = served.send("POST", "/v1/load_lora_adapter", json={"lora_name": "wide"})
    assert response.status_code == 400
    assert "128" in response.json()["error"]["message"]
    expected = generated(models["hina-4m"], PROMPTS[0], 24)
    assert texts(ask(served, {"model": "hina-4m", "prompt": PROMPTS[0]})) == [expected]


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(served: VllmSite) -> None:
    hot = {"model": "b", "prompt": PROMPTS[0], "temperature": 1.3, "top_p": 0.95, "top_k": 40}
    hot |= {"min_p": 0.01}
    others = [{"model": "hina-4m", "prompt": prompt, "temperature": 1} for prompt in PROMPTS]
    for seed in (7, -1, 2**63 - 1):
        [alone] = ask(served, hot | {"seed": seed})
        *_, together = ask(served, *others, hot | {"seed": seed})
        assert together["choices"] == alone["choices"]
    assert len(set(texts(ask(served, *(hot | {"seed": seed} for seed in range(4)))))) > 1


def test_logprobs_are_the_models_own(served: VllmSite, models: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    prompt = tokenizer(PROMPTS[0], return_tensors="pt", add_special_tokens=False).input_ids
    body = {"model": "b", "prompt": PROMPTS[0], "max_tokens": 1, "logprobs": 3}
    body |= {"temperature": 0.5, "seed": 1, "presence_penalty": 1}
    [answer] = ask(served, body)
    told = answer["choices"][0]["logprobs"]
    with torch.no_grad():
        expected = models["b"](prompt).logits[0, -1].log_softmax(-1).topk(3).values.tolist()
    [top] = told["top_logprobs"]
    assert sorted(top.values(), reverse=True) == pytest.approx(expected, abs=1e-3)
    assert len(told["tokens"]) == len(told["token_logprobs"]) == 1
    [plain] = ask(served, body | {"logprobs": 0})
    assert plain["choices"][0]["logprobs"]["top_logprobs"] == [{}]


def test_penalties_keep_an_answer_from_repeating_itself(served: VllmSite) -> None:
    body = {"model": "hina-4m", "prompt": "はいはいはいはい", "max_tokens": 40}
    hard = {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 1.5}
    plain, penalised = texts(ask(served, body, body | hard))
    assert len(set(penalised)) / len(penalised) > len(set(plain)) / len(plain)


def test_a_client_that_goes_away_frees_its_slot(served: VllmSite) -> None:
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 900}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "b", "prompt": PROMPTS[0], "max_tokens": 1500, "response_format": wanted}

    async def leave() -> None:
        async with (
            served.client() as client,
            client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response,
        ):
            async for line in response.aiter_lines():
                assert line.startswith("data: ")
                break

    for _ in range(6):
        served.run(leave())
    end = time.monotonic() + 5
    while served.figure("aift_running") or served.figure("aift_waiting"):
        assert time.monotonic() < end
        time.sleep(0.05)
    # more than there are slots, so that those left hold none
    assert len(set(texts(ask(served, *[{"model": "b", "prompt": PROMPTS[0]}] * 5)))) == 1
    assert served.figure("aift_cached_tokens") == 0


def test_a_dead_engine_is_noticed_and_its_replica_replaced(served: VllmSite) -> None:
    [core] = cores(served)
    core.kill()
    until_answered(served)
    assert cores(served) != [core]


def test_of_a_killed_replica_nothing_is_left(served: VllmSite) -> None:
    [core] = cores(served)
    [replica] = [each for each in core.parents() if "ServeReplica" in " ".join(each.cmdline())]
    replica.kill()
    core.wait(60)
    until_answered(served)
    assert cores(served) != [core]


def cores(served: VllmSite) -> list[psutil.Process]:
    """vLLM's processes that schedule."""
    family = psutil.Process(served.served.process.pid).children(recursive=True)
    return [each for each in family if "EngineCore" in " ".join(each.cmdline())]


def until_answered(served: VllmSite) -> None:
    body = {"model": "b", "prompt": PROMPTS[0], "max_tokens": 1}
    end = time.monotonic() + 300
    while True:
        assert time.monotonic() < end
        try:
            response = served.send("POST", "/v1/completions", json=body)
        except (TimeoutError, httpx.HTTPError):
            # with no replica there, Serve lets requests wait
            continue
        if response.status_code == 200:
            return
        assert response.status_code in (500, 503)
        time.sleep(1)
