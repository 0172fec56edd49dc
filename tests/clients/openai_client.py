"""openai: chat, the stream helper, a loop of tools, parse, models.retrieve, responses."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel

from tests.clients.common import KEY, MODEL, QUESTION, THINKING, TOOL, TOWNS, URL, refused

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
ASK: dict[str, Any] = {"model": MODEL, "seed": 1, "max_tokens": 80}
messages: list[Any] = [{"role": "user", "content": QUESTION}]

# names may hold a slash
assert [model.id for model in client.models.list()] == [MODEL]
assert client.models.retrieve(MODEL).id == MODEL

answer = client.chat.completions.create(messages=messages, **ASK)
assert answer.choices[0].message.role == "assistant"
with client.chat.completions.stream(messages=messages, **ASK) as events:
    kinds = {event.type for event in events}
    final = events.get_final_completion()
assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
assert final.choices[0].message.content == answer.choices[0].message.content

# a loop of tools, each answer sent back as it came
for choice in ("required", "none"):
    said = client.chat.completions.create(
        messages=messages, tools=[TOOL], tool_choice=choice, **(ASK | {"max_tokens": 300})
    ).choices[0]
    messages.append(said.message)
    for call in said.message.tool_calls or []:
        assert json.loads(call.function.arguments)["town"] in TOWNS
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "晴れです。"})
assert len(messages) == 4


class Town(BaseModel):
    town: Literal["東京", "大阪"]


parsed = client.chat.completions.parse(
    messages=messages[:1], response_format=Town, **(ASK | {"max_tokens": 300})
)
assert parsed.choices[0].message.parsed.town in TOWNS
tools = [openai.pydantic_function_tool(Town, name="weather")]
called = client.chat.completions.parse(
    messages=messages[:1], tools=tools, tool_choice="required", **(ASK | {"max_tokens": 300})
)
assert called.choices[0].message.tool_calls[0].function.parsed_arguments.town in TOWNS

thought = client.chat.completions.create(messages=messages[:1], extra_body=THINKING, **ASK)
assert thought.choices[0].message.reasoning_content
assert thought.usage.completion_tokens_details.reasoning_tokens > 5

response = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=30)
assert response.output_text == "" or response.output[-1].type == "message"
kinds = [
    event.type
    for event in client.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=30, stream=True
    )
]
assert kinds[0] == "response.created"
assert kinds[-1] in ("response.completed", "response.incomplete")
assert client.responses.parse(
    model=MODEL, input=QUESTION, text_format=Town, max_output_tokens=300
).output_parsed.town in TOWNS  # fmt: skip
more = {"model": MODEL, "input": "a", "previous_response_id": "resp_1"}
error = refused(openai.BadRequestError, client.responses.create, **more)
assert error.param == "previous_response_id"
stranger = openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0)
refused(openai.AuthenticationError, stranger.models.list)
