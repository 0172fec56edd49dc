"""Hugging Face's InferenceClient: chat, stream, tools, a schema, completions' errors."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.clients.common import KEY, MODEL, QUESTION, SCHEMA, TOOL, TOWNS, URL, refused

client = InferenceClient(base_url=f"{URL}/v1", api_key=KEY)
messages = [{"role": "user", "content": QUESTION}]
asked: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 60, "temperature": 0}
whole = client.chat_completion(**asked, logprobs=True, top_logprobs=2)
assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
chunks = list(client.chat_completion(**asked, stream=True, stream_options={"include_usage": True}))
pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
assert "".join(pieces) == whole.choices[0].message.content
longer = asked | {"max_tokens": 300}
called = client.chat_completion(**longer, tools=[TOOL], tool_choice="required")
[call] = called.choices[0].message.tool_calls
assert json.loads(call.function.arguments)["town"] in TOWNS
schema = {"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA, "strict": True}}
held = client.chat_completion(**longer, response_format=schema)
assert json.loads(held.choices[0].message.content)["town"] in TOWNS
same = client.chat.completions.create(**asked)
assert same.choices[0].message.content == whole.choices[0].message.content
other = asked | {"model": "another"}
assert "404" in str(refused(HfHubHTTPError, client.chat_completion, **other))
