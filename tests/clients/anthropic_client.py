"""anthropic: messages, the stream helper, a loop of tools, thoughts, counted tokens, errors."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.clients.common import FUNCTION, KEY, MODEL, QUESTION, SCHEMA, TOWNS, URL, refused

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
TOOL = {"name": "weather", "description": FUNCTION["description"], "input_schema": SCHEMA}
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 300}
messages: list[Any] = [{"role": "user", "content": QUESTION}]

answer = client.messages.create(messages=messages, system="短く。", temperature=0, **ASK)
assert answer.stop_reason in ("end_turn", "max_tokens")
assert all(block.type == "text" for block in answer.content)
with client.messages.stream(messages=messages, system="短く。", temperature=0, **ASK) as events:
    text = "".join(events.text_stream)
    final = events.get_final_message()
assert text == "".join(block.text for block in answer.content)
assert final.usage.output_tokens == answer.usage.output_tokens
assert final.stop_reason == answer.stop_reason

called = client.messages.create(messages=messages, tools=[TOOL], tool_choice={"type": "any"}, **ASK)
use = called.content[-1]
assert (called.stop_reason, use.type) == ("tool_use", "tool_use")
assert use.input["town"] in TOWNS
messages.append({"role": "assistant", "content": called.content})
result = {"type": "tool_result", "tool_use_id": use.id, "content": "晴れです。"}
messages.append({"role": "user", "content": [result]})
after = client.messages.create(messages=messages, tools=[TOOL], **(ASK | {"max_tokens": 20}))
counted = client.messages.count_tokens(model=MODEL, messages=messages, tools=[TOOL])
assert counted.input_tokens == after.usage.input_tokens
with client.messages.stream(
    messages=messages[:1], tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}, **ASK
) as events:
    streamed = events.get_final_message()
assert streamed.content[-1].input["town"] in TOWNS

thinking = {"type": "enabled", "budget_tokens": 6}
thought = client.messages.create(messages=messages[:1], thinking=thinking, **ASK)
assert thought.content[0].type == "thinking"
again = [*messages[:1], {"role": "assistant", "content": thought.content}, *messages[:1]]
client.messages.create(messages=again, **(ASK | {"max_tokens": 5}))
with client.messages.stream(messages=messages[:1], thinking=thinking, **ASK) as events:
    assert "thinking" in {event.type for event in events}

for wrong, kind in (
    ({"model": "other"}, anthropic.NotFoundError),
    ({"top_k": -5}, anthropic.BadRequestError),
):
    asked = ASK | wrong | {"messages": messages[:1]}
    assert refused(kind, client.messages.create, **asked).body["type"] == "error"
stranger = anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0)
error = refused(
    anthropic.AuthenticationError, stranger.messages.create, messages=messages[:1], **ASK
)
assert error.body["error"]["type"] == "authentication_error"
