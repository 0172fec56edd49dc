"""Anthropic's messages API over plain HTTP; its own client is among the tests of clients."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.scripted_engine import Model
from tests.serving.http.test_responses_api import CALLED, model, prompt

__all__ = ["model"]
ASK = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": "首都は？"}]}
SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["東京", "大阪"]}},
    "required": ["town"],
    "additionalProperties": False,
}
TOOL = {"name": "weather", "description": "天気", "input_schema": SCHEMA}


def send(model: Model, script: str, **asked: Any) -> Any:
    model.engine.script = model.ids(script)
    return model.post("/v1/messages", ASK | asked)


def events(model: Model, script: str, **asked: Any) -> list[dict[str, Any]]:
    text = send(model, script, stream=True, **asked).text
    found = [block.splitlines() for block in text.split("\n\n") if block]
    for name, data in found:
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
    return [json.loads(data.removeprefix("data: ")) for _, data in found]


def built(told: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together."""
    message = dict(told[0]["message"])
    blocks: list[Any] = []
    for event in told:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            if delta["type"] == "input_json_delta":
                block["input"] = json.loads(delta["partial_json"])
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] = block[name] + delta[name]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message | {"content": blocks}


@pytest.mark.parametrize(
    ("script", "kinds", "reason"),
    [
        ("東京です。", ["text"], "end_turn"),
        ("<think>考え</think>東京です。", ["thinking", "text"], "end_turn"),
        (f"<think>考え</think>はい。{CALLED}", ["thinking", "text", "tool_use"], "tool_use"),
        (CALLED, ["tool_use"], "tool_use"),
    ],
)
def test_a_stream_builds_the_message(
    model: Model, script: str, kinds: list[str], reason: str
) -> None:
    whole = send(model, script, tools=[TOOL]).json()
    told = events(model, script, tools=[TOOL])
    assert [told[0]["type"], told[-1]["type"]] == ["message_start", "message_stop"]
    starts = [event["type"] for event in told].count("content_block_start")
    assert starts == [event["type"] for event in told].count("content_block_stop")
    streamed = built(told)
    assert [block["type"] for block in whole["content"]] == kinds
    assert whole["stop_reason"] == reason
    for message in (whole, streamed):
        message.pop("id")
        for block in message["content"]:
            block.pop("id", None)
    assert streamed == whole


def test_what_ended_an_answer_is_told(model: Model) -> None:
    stopped = send(model, "はい。終わり。以上", stop_sequences=["終わり", "以上"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "終わり")
    assert stopped["content"][0]["text"] == "はい。"
    assert send(model, "はい。終わり。", max_tokens=2).json()["stop_reason"] == "max_tokens"


def test_calls_and_results_are_sent_back(model: Model) -> None:
    first = send(model, f"調べます。{CALLED}", tools=[TOOL]).json()
    use = first["content"][-1]
    result = {"type": "tool_result", "tool_use_id": use["id"],
              "content": [{"type": "text", "text": "晴れ"}], "is_error": False}  # fmt: skip
    turns = [
        *ASK["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "それで？"}]},
    ]
    system = [{"type": "text", "text": "短く。", "cache_control": {"type": "ephemeral"}}]
    asked: dict[str, Any] = {"messages": turns, "system": system, "tools": [TOOL]}
    answer = send(model, "晴れです。", **asked)
    assert answer.json()["content"] == [{"type": "text", "text": "晴れです。"}]
    assert "system\n短く。" in prompt(model)
    assert prompt(model).index("調べます。") < prompt(model).index("それで？")
    counted = model.post("/v1/messages/count_tokens", {"model": "m"} | asked).json()
    assert counted == {"input_tokens": answer.json()["usage"]["input_tokens"]}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_can_be_asked_for(model: Model, choice: dict[str, str]) -> None:
    [use] = send(model, "やあ", tools=[TOOL], tool_choice=choice).json()["content"]
    assert use["input"]["town"] in ("東京", "大阪")


def test_thoughts_are_limited_turned_off_and_left_out(model: Model) -> None:
    long = "<think>" + "考えている。" * 20 + "</think>はい"
    limited = send(model, long, thinking={"type": "enabled", "budget_tokens": 5}).json()
    assert len(limited["content"][0]["thinking"]) < 12
    send(model, "はい", thinking={"type": "disabled"})
    assert prompt(model).endswith("<think>\n\n</think>\n\n")
    shown = {"type": "adaptive", "display": "omitted"}
    [block] = send(model, "<think>考え</think>はい", thinking=shown).json()["content"]
    assert block == {"type": "text", "text": "はい"}
    text = {"format": {"type": "json_schema", "schema": SCHEMA}}
    [_, block] = send(model, "<think>考え</think>やあ", output_config=text).json()["content"]
    assert json.loads(block["text"])["town"] in ("東京", "大阪")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"container": "c"}, "container"),
        ({"model": "other"}, "no model"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "last message"),
        ({"temperature": 1.5}, "temperature"),
    ],
)
def test_errors_have_anthropics_shape(model: Model, change: dict[str, Any], told: str) -> None:
    response = model.post("/v1/messages", ASK | change)
    assert response.status_code in (400, 404)
    error = response.json()
    assert (set(error), error["type"]) == ({"type", "error"}, "error")
    assert set(error["error"]) == {"type", "message"}
    assert told in error["error"]["message"], error


def test_what_asks_for_nothing_is_taken_of_the_beta_fields_too(model: Model) -> None:
    idle = {"context_management": None, "mcp_servers": [], "container": None}
    assert send(model, "はい", **idle).status_code == 200
    asked = ASK | {"mcp_servers": [{"type": "url", "name": "a", "url": "http://a"}]}
    refused = model.post("/v1/messages", asked)
    assert refused.status_code == 400
    assert "mcp_servers" in refused.json()["error"]["message"]


def test_a_model_that_does_not_think_says_so() -> None:
    from tests.helpers import chat_templates

    one = Model("qwen3")
    one.service.thinking = None
    one.service.template.names = set()
    asked = {"type": "enabled", "budget_tokens": 5}
    assert "thinking" in send(one, "はい", thinking=asked).json()["error"]["message"]
    assert send(one, "はい", thinking={"type": "disabled"}).status_code == 200
    assert chat_templates
