"""litellm: `openai/` and `hosted_vllm/`, plain, streamed, with tools, a schema and thoughts."""

from __future__ import annotations

import json

import litellm

from tests.clients.common import KEY, MODEL, QUESTION, SCHEMA, THINKING, TOOL, TOWNS, URL, refused

litellm.telemetry = False
messages = [{"role": "user", "content": QUESTION}]
for provider in ("openai", "hosted_vllm"):
    place = {"model": f"{provider}/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY}
    asked = place | {"messages": messages, "temperature": 0, "max_tokens": 60, "num_retries": 0}
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == text

    called = litellm.completion(
        **(asked | {"max_tokens": 300}), tools=[TOOL], tool_choice="required"
    )
    message = called.choices[0].message
    [call] = message.tool_calls
    assert json.loads(call.function.arguments)["town"] in TOWNS
    result = {"role": "tool", "tool_call_id": call.id, "content": "晴れです。"}
    history = [*messages, message, result]
    litellm.completion(**(asked | {"messages": history, "max_tokens": 5}), tools=[TOOL])

    schema = {"name": "town", "schema": SCHEMA, "strict": True}
    held = litellm.completion(
        **(asked | {"max_tokens": 300}),
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert json.loads(held.choices[0].message.content)["town"] in TOWNS
    thought = litellm.completion(**asked, extra_body=THINKING)
    assert thought.choices[0].message.reasoning_content
    other = asked | {"model": f"{provider}/another"}
    refused(litellm.NotFoundError, litellm.completion, **other)
