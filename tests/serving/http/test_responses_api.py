"""OpenAI's responses API by its own client, on a model that writes what a test wants."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.helpers.scripted_engine import Model

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "天気",
    "parameters": {
        "type": "object",
        "properties": {"town": {"enum": ["東京", "大阪"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALLED = '<tool_call>{"name": "weather", "arguments": {"town": "大阪"}}</tool_call>'


@pytest.fixture(scope="module")
def model() -> Model:
    one = Model("qwen3")
    one.service._takes_tools = True
    return one


def create(model: Model, script: str, **asked: Any) -> Any:
    model.engine.script = model.ids(script)

    async def created() -> Any:
        client = openai.AsyncOpenAI(
            api_key="-", base_url="http://m/v1", http_client=model.client(), max_retries=0
        )
        values = {"model": "m", "input": "首都は？"} | asked
        if not asked.get("stream"):
            return await client.responses.create(**values)
        return [event async for event in await client.responses.create(**values)]

    return asyncio.run(created())


def prompt(model: Model) -> str:
    return str(model.tokenizer.decode(model.engine.requests[-1].prompt))


def test_an_answer_is_a_thought_and_a_message(model: Model) -> None:
    answer = create(model, "<think>考え</think>東京です。", instructions="短く。")
    assert (answer.status, answer.output_text) == ("completed", "東京です。")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == "考え"
    usage = answer.usage
    assert usage.output_tokens_details.reasoning_tokens == len(model.ids("<think>考え</think>"))
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert "system\n短く。" in prompt(model)


def test_an_answer_that_is_cut_is_incomplete(model: Model) -> None:
    answer = create(model, "東京です。大阪です。", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_call_is_an_item_and_is_sent_back_with_its_result(model: Model) -> None:
    answer = create(model, f"調べます。{CALLED}", tools=[TOOL])
    assert [item.type for item in answer.output] == ["message", "function_call"]
    call = answer.output[1]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"town": "大阪"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "晴れ"}
    items = [{"role": "user", "content": "天気は？"}]
    items += [item.model_dump() for item in answer.output] + [result]
    again = create(model, "晴れです。", input=items, tools=[TOOL])
    assert again.output_text == "晴れです。"
    # the test's template writes what is said; the roles are those of the items
    assert "天気は？" in prompt(model)
    assert "調べます。" in prompt(model)
    held = create(model, "", tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
    assert json.loads(held.output[0].arguments)["town"] in ("東京", "大阪")


def test_a_schema_is_followed(model: Model) -> None:
    schema = TOOL["parameters"]
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    answer = create(model, "やあ", text=text, reasoning={"effort": "none"})
    assert json.loads(answer.output_text)["town"] in ("東京", "大阪")


@pytest.mark.parametrize(
    ("script", "items"),
    [
        ("東京です。", ["message"]),
        ("<think>考え</think>東京です。", ["reasoning", "message"]),
        (f"<think>考え</think>はい。{CALLED}", ["reasoning", "message", "function_call"]),
        (CALLED, ["function_call"]),
    ],
)
def test_the_events_of_a_stream_build_the_answer(
    model: Model, script: str, items: list[str]
) -> None:
    whole = create(model, script, tools=[TOOL])
    events = create(model, script, tools=[TOOL], stream=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(said) == whole.output_text == events[-1].response.output_text
    assert [item.type for item in events[-1].response.output] == items
    for kind in ("output_item", "content_part"):
        assert kinds.count(f"response.{kind}.added") == kinds.count(f"response.{kind}.done")
    for at, item in enumerate(events[-1].response.output):
        placed = [e for e in events if getattr(e, "output_index", None) == at]
        assert placed[0].type == "response.output_item.added"
        assert placed[-1].type == "response.output_item.done"
        assert placed[-1].item == item
    thoughts = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(thoughts) == ("考え" if "reasoning" in items else "")


def test_the_clients_own_stream_and_parse_helpers_take_it(model: Model) -> None:
    from pydantic import BaseModel

    class Town(BaseModel):
        town: str

    model.engine.script = model.ids('{"town":"大阪"}')

    async def used() -> Any:
        client = openai.AsyncOpenAI(
            api_key="-", base_url="http://m/v1", http_client=model.client(), max_retries=0
        )
        asked: dict[str, Any] = {"model": "m", "input": "町は？"}
        parsed = await client.responses.parse(**asked, text_format=Town)
        async with client.responses.stream(**asked) as events:
            async for _ in events:
                pass
            final = await events.get_final_response()
        return parsed.output_parsed, final.output_text

    parsed, text = asyncio.run(used())
    assert parsed == Town(town="大阪")
    assert text == '{"town":"大阪"}'


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"include": ["message.output_text.logprobs"]}, "include.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "input.0"),
        ({"input": []}, "input"),
        ({"やっほー": 1}, "やっほー"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    model: Model, change: dict[str, Any], param: str
) -> None:
    response = model.post("/v1/responses", {"model": "m", "input": "a"} | change)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith(param), response.text


def test_what_asks_for_nothing_is_taken(model: Model) -> None:
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    idle: dict[str, Any] = dict.fromkeys(ResponseCreateParamsBase.__annotations__)
    idle |= {"model": "m", "input": "a"}
    defaults = {
        "background": False, "include": [], "metadata": {"a": "b"}, "parallel_tool_calls": True,
        "service_tier": "auto", "store": True, "temperature": 1, "tool_choice": "auto",
        "top_p": 1, "truncation": "disabled", "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None}, "tools": [], "user": "u",
        "safety_identifier": "s", "prompt_cache_key": "k", "top_logprobs": 0,
    }  # fmt: skip
    for body in (idle, {"model": "m", "input": "a"} | defaults):
        assert model.post("/v1/responses", body).status_code == 200
