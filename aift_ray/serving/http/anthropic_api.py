"""Anthropic's messages API: its turns to a conversation, an answer to its blocks and events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response

from aift_ray.serving.api_errors import ApiError, fields_named
from aift_ray.serving.chat import Begun, begin, prompt_of
from aift_ray.serving.http import content_blocks, sse
from aift_ray.serving.http.anthropic_requests import (
    AnthropicTurn,
    CountRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from aift_ray.serving.http.content_blocks import Parts
from aift_ray.serving.http.responses_api import validated
from aift_ray.serving.openai_requests import ChatRequest
from aift_ray.serving.service import Service
from aift_ray.serving.tools import Call

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_SWITCHES = ("enable_thinking", "thinking")
# of fields of a chat
_NAMES = {
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
    "thinking_token_budget": "thinking.budget_tokens",
    "max_completion_tokens": "max_tokens",
}


async def message(service: Service, body: MessagesRequest) -> Response:
    """`POST /v1/messages`."""
    asked: dict[str, Any] = {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }
    with fields_named(_NAMES):
        begun = begin(service, chat_request(service, body, asked))
    answer = MessageWriter(body, begun)
    if body.stream:
        return await sse.begun(answer.events())
    answer.add(await content_blocks.whole(begun))
    return JSONResponse(answer.message())


def count(service: Service, body: CountRequest) -> dict[str, int]:
    """`POST /v1/messages/count_tokens`."""
    service.adapter(body.model)
    with fields_named(_NAMES):
        prompt = prompt_of(service, chat_request(service, body, {}))
    return {"input_tokens": len(prompt)}


def chat_request(service: Service, body: CountRequest, asked: dict[str, Any]) -> ChatRequest:
    """The same as a chat; ApiError 400 where the turns make no conversation."""
    asked |= {"model": body.model, "messages": _messages(body)}
    asked["tools"] = [
        _function(name=each.name, description=each.description, parameters=each.input_schema)
        for each in body.tools or []
    ]
    if body.tool_choice:
        chosen = body.tool_choice
        choices: dict[str, Any] = {"any": "required", "tool": _function(name=chosen.name)}
        asked["tool_choice"] = choices.get(chosen.type, chosen.type)
    config = body.output_config
    if config and config.format:
        schema = {"name": "answer", "schema": config.format.schema_}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    if config and config.effort:
        asked["reasoning_effort"] = config.effort
    return validated(asked | _thinking(service, body), "messages")


def _function(**told: object) -> dict[str, Any]:
    return {"type": "function", "function": told}


def _thinking(service: Service, body: CountRequest) -> dict[str, Any]:
    """How a chat says the same of thoughts."""
    wanted = body.thinking
    if wanted is None:
        return {}
    switch = next((name for name in _SWITCHES if name in service.template.names), None)
    if wanted.type == "disabled":
        if service.thinking and not switch:
            raise ApiError(400, "this model always thinks", "thinking")
        return {"chat_template_kwargs": {switch: False}} if switch else {}
    if service.thinking is None:
        raise ApiError(400, "this model's chat template knows no thoughts", "thinking")
    options = {"chat_template_kwargs": {switch: True}} if switch else {}
    return options | {"thinking_token_budget": wanted.budget_tokens}


def _messages(body: CountRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if body.system:
        texts = [body.system] if isinstance(body.system, str) else [t.text for t in body.system]
        found.append({"role": "system", "content": "\n".join(texts)})
    for turn in body.messages:
        found += _turn(turn)
    return found


def _turn(turn: AnthropicTurn) -> list[dict[str, Any]]:
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            arguments = json.dumps(block.input, ensure_ascii=False)
            calls.append({"id": block.id, "function": {"name": block.name, "arguments": arguments}})
        else:
            results.append(_result(block))
    if turn.role != "assistant":
        # results come before what the user says to them
        text = [{"role": turn.role, "content": "".join(texts)}] if texts or not results else []
        return [*results, *text]
    said: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
    if not texts and not calls:
        said["content"] = ""
    return [said | {"tool_calls": calls, "reasoning_content": "".join(thoughts)}]


def _result(block: ToolResultBlock) -> dict[str, Any]:
    content = block.content or ""
    text = content if isinstance(content, str) else "".join(each.text for each in content)
    if block.is_error:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


class MessageWriter:
    """Writes one message, whole or as events."""

    def __init__(self, body: MessagesRequest, begun: Begun) -> None:
        self._model, self._begun = body.model, begun
        self._omits = body.thinking is not None and body.thinking.display == "omitted"
        self._id = f"msg_{uuid.uuid4().hex}"
        self._blocks: list[dict[str, Any]] = []
        self._open = False
        self._end: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}

    def add(self, said: Parts) -> None:
        """Put the whole of an answer into the message."""
        for _ in self._tell(said):
            pass

    def message(self) -> dict[str, Any]:
        """The message as it is now."""
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return head | {"content": self._blocks} | self._end | {"usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        made = sum(answer.tokens for answer in self._begun.answers)
        return {"input_tokens": self._begun.prompt_tokens, "output_tokens": made}

    async def events(self) -> AsyncGenerator[bytes]:
        """The events of a stream; an error in its midst is the last event."""
        yield _event("message_start", message=self.message())
        try:
            async with aclosing(content_blocks.streamed(self._begun)) as told:
                async for said in told:
                    for each in self._tell(said):
                        yield each
        except ApiError as error:
            yield _event("error", error=error.anthropics()["error"])
            return
        yield _event("message_delta", delta=self._end, usage=self._usage())
        yield _event("message_stop")

    def _tell(self, said: Parts) -> Iterator[bytes]:
        if said.thought and not self._omits:
            yield from self._text("thinking", "thinking", said.thought)
        if said.text:
            yield from self._text("text", "text", said.text)
        if not said.finish:
            return
        yield from self._close()
        for call in said.calls:
            yield from self._call(call)
        reason = "stop_sequence" if said.stop is not None else _REASONS[said.finish]
        self._end = {"stop_reason": reason, "stop_sequence": said.stop}

    def _text(self, kind: str, field: str, text: str) -> Iterator[bytes]:
        if not self._open or self._blocks[-1]["type"] != kind:
            yield from self._close()
            more = {"signature": ""} if kind == "thinking" else {}
            yield self._begin({"type": kind, field: ""} | more)
        self._blocks[-1][field] += text
        yield self._delta({"type": f"{kind}_delta", field: text})

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._blocks.append(block)
        self._open = True
        at = len(self._blocks) - 1
        return _event("content_block_start", index=at, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = False
            if self._blocks[-1]["type"] == "thinking":
                yield self._delta({"type": "signature_delta", "signature": ""})
            yield _event("content_block_stop", index=len(self._blocks) - 1)

    def _call(self, call: Call) -> Iterator[bytes]:
        name = f"toolu_{call.id.removeprefix('call_')}"
        yield self._begin({"type": "tool_use", "id": name, "name": call.name, "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        self._blocks[-1]["input"] = json.loads(call.arguments)
        yield from self._close()


def _event(kind: str, **content: object) -> bytes:
    told = json.dumps({"type": kind} | content, ensure_ascii=False)
    return f"event: {kind}\ndata: {told}\n\n".encode()
