"""OpenAI's routes, by OpenAI's client and by plain HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from tests.serving.conftest import Site

QUESTION = [{"role": "user", "content": "「ありがとう」を英語にしてください。"}]


def ask(site: Site, **values: Any) -> Any:
    settings: dict[str, Any] = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": 24}
    settings |= {"temperature": 0} | values
    return site.run(site.openai().completions.create(**settings))


def streamed(site: Site, **values: Any) -> list[Any]:
    async def collect() -> list[Any]:
        settings: dict[str, Any] = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": 24}
        settings |= {"temperature": 0, "stream": True} | values
        return [chunk async for chunk in await site.openai().completions.create(**settings)]

    return site.run(collect())


def test_the_base_comes_first_then_the_adapters(site: Site) -> None:
    models = site.run(site.openai().models.list())
    assert [model.id for model in models.data] == ["hina-4m", "大阪弁", "b"]


def test_a_stream_says_what_the_whole_answer_says(site: Site) -> None:
    for model in ("hina-4m", "大阪弁", "b"):
        whole = ask(site, model=model)
        chunks = streamed(site, model=model, stream_options={"include_usage": True})
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].text
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert len(chunks) > 5


def test_chat_answers_and_counts_as_tokenize_does(site: Site) -> None:
    async def chat() -> Any:
        return await site.openai().chat.completions.create(
            model="b", messages=QUESTION, max_completion_tokens=9, seed=1, logprobs=True,
            top_logprobs=2,
        )  # fmt: skip

    answer = site.run(chat())
    counted = site.send("POST", "/tokenize", json={"messages": QUESTION}).json()
    assert answer.usage.prompt_tokens == counted["count"] == len(counted["tokens"])
    assert answer.choices[0].message.role == "assistant"
    told = answer.choices[0].logprobs.content
    assert len(told) == answer.usage.completion_tokens - (answer.choices[0].finish_reason == "stop")
    assert all(len(entry.top_logprobs) == 2 for entry in told)


def test_a_chat_stream_begins_with_the_role_and_ends_with_done(site: Site) -> None:
    body = {"model": "b", "messages": QUESTION, "max_tokens": 8, "seed": 3}
    whole = site.send("POST", "/v1/chat/completions", json=body).json()
    response = site.send("POST", "/v1/chat/completions", json=body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0] for event in events]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(delta["delta"].get("content", "") for delta in deltas)
    assert said == whole["choices"][0]["message"]["content"]
    assert deltas[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_stop_strings_end_an_answer_wherever_tokens_end(site: Site) -> None:
    whole = ask(site).choices[0].text
    assert len(whole) > 8
    for stop in (whole[3], whole[2:6], whole[5:7]):
        cut = whole[: whole.index(stop)]
        answer = ask(site, stop=["never said", stop])
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (cut, "stop")
        assert "".join(c.choices[0].text for c in streamed(site, stop=stop)) == cut


def test_several_answers_differ_and_repeat_with_the_seed(site: Site) -> None:
    hot = {"n": 3, "temperature": 1.5, "seed": 11}
    first, second = ask(site, **hot), ask(site, **hot)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3
    chunks = streamed(site, **hot)
    for index in range(3):
        parts = [c.choices[0].text for c in chunks if c.choices[0].index == index]
        assert "".join(parts) == texts[index]


def test_logprobs_of_completions_have_their_places(site: Site) -> None:
    logprobs = ask(site, logprobs=2, max_tokens=5).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 5
    assert logprobs.text_offset[0] == 0
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_a_json_schema(site: Site, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"名前": {"type": "string", "maxLength": 8}, "年": {"enum": [1, 2, 30]}},
        "required": ["名前", "年"],
        "additionalProperties": False,
    }
    wanted: dict[str, Any] = {"type": "json_object", "value": schema}
    if not stream:
        wanted = {"type": "json_schema", "json_schema": {"name": "人", "schema": schema}}
    body = {"model": "b", "messages": QUESTION, "response_format": wanted, "seed": 5, "n": 2}
    texts = ["", ""]
    response = site.send("POST", "/v1/chat/completions", json=body | {"stream": stream})
    events = response.text.split("\n\n") if stream else [response.text]
    for event in events:
        if "{" not in event:
            continue
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            said = choice["delta" if stream else "message"]
            texts[choice["index"]] += said.get("content", "")
            assert choice["finish_reason"] in (None, "stop")
    for text in texts:
        jsonschema_rs.validate(schema, json.loads(text))


def test_generate_is_the_instruction_over_http(site: Site) -> None:
    body = {"instruction": "要約してください。", "input": "本文です。", "do_sample": False}
    body |= {"max_new_tokens": 12, "model": "b"}
    whole = site.send("POST", "/generate", json=body).json()
    assert set(whole) == {"text", "usage"}
    told = site.send("POST", "/generate", json=body | {"stream": True}).text
    events = [json.loads(e.removeprefix("data: ")) for e in told.split("\n\n") if "{" in e]
    assert "".join(event["text"] for event in events) == whole["text"]
    assert events[-1]["usage"] == whole["usage"]


def test_control_strings_of_a_user_are_text(site: Site) -> None:
    def count(text: str) -> int:
        body = {"messages": [{"role": "user", "content": text}]}
        number: int = site.send("POST", "/tokenize", json=body).json()["count"]
        return number

    assert count("<|im_end|>") > count("あ") + 2


def test_metrics_count_by_model(site: Site) -> None:
    ask(site, model="b", max_tokens=3)
    text = site.send("GET", "/metrics").text
    for name in ("aift_requests_total", "aift_generated_tokens_total", "aift_prompt_tokens_total"):
        assert f"{name}{{" in text
    assert re.search(r'aift_time_to_first_token_seconds_count{model="b",replica="[^"]*"}', text)
    assert re.search(r'aift_inter_token_seconds_count{model="b",replica="[^"]*"}', text)
    assert re.search(r'aift_waiting{replica="[^"]*"} 0.0', text)
