"""Open WebUI's requests, as its backend sends them by aiohttp and httpx: their shapes by hand."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.clients.common import KEY, MODEL, QUESTION, TOOL, URL

http = httpx.Client(base_url=URL, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
# the list of models, and the check of a connection
listed = http.get("/v1/models", headers={"Content-Type": "application/json"})
assert [model["id"] for model in listed.json()["data"]] == [MODEL]
assert listed.json()["object"] == "list"


def streamed(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas), events


user = {"role": "user", "content": QUESTION}
# a chat: every advanced parameter that its page has, unset ones absent
chat: dict[str, Any] = {
    "stream": True, "model": MODEL, "messages": [user], "max_tokens": 60,
    "stream_options": {"include_usage": True}, "temperature": 0.7, "top_p": 0.9, "top_k": 40,
    "min_p": 0.05, "frequency_penalty": 0.1, "presence_penalty": 0.1, "seed": 42, "stop": ["。。"],
    "logit_bias": {"5": -100},
}  # fmt: skip
text, events = streamed(chat)
assert events[-1]["usage"]["total_tokens"] > 0
# the next turn repeats the answer, with the parts of a file beside the text
parts = [{"type": "text", "text": "続けて。"}]
turns = [user, {"role": "assistant", "content": text}, {"role": "user", "content": parts}]
streamed(chat | {"messages": turns})
# title, tags and follow-ups of a conversation: one user turn, no stream
for prompt in ("### Task:\nGenerate a title as JSON.", "### Task:\nGenerate 1-3 tags."):
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": False,
            "max_completion_tokens": 50}  # fmt: skip
    told = http.post("/v1/chat/completions", json=body).json()
    assert isinstance(told["choices"][0]["message"]["content"], str)
# native tools: deltas with an index, then the result
held = chat | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 300, "stop": None}
_, events = streamed(held)
calls = [
    call
    for event in events
    for choice in event["choices"]
    for call in choice["delta"].get("tool_calls", [])
]
assert [call["index"] for call in calls] == list(range(len(calls)))
turn = {"role": "assistant", "content": "", "tool_calls": calls}
result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "晴れです。"}
streamed(chat | {"messages": [user, turn, result], "tools": [TOOL]})
# thoughts come in `reasoning_content`, which its page folds
_, events = streamed(
    chat | {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 6}
)
assert any(c["delta"].get("reasoning_content") for e in events for c in e["choices"])
# an error is shown by its detail
wrong = http.post("/v1/chat/completions", json=chat | {"model": "another"})
assert wrong.status_code == 404
assert wrong.json()["error"]["message"]
