"""OpenAI's responses API: items to a conversation, an answer to items and events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from aift_ray.serving.api_errors import ApiError, fields_named
from aift_ray.serving.chat import Begun, begin
from aift_ray.serving.http import content_blocks, sse
from aift_ray.serving.http.content_blocks import Parts
from aift_ray.serving.http.responses_requests import (
    FunctionChoice,
    InputCall,
    InputMessage,
    InputResult,
    InputThought,
    Item,
    ResponsesRequest,
    TextFormat,
)
from aift_ray.serving.openai_requests import ChatRequest
from aift_ray.serving.service import Service
from aift_ray.serving.tools import Call

# of fields of a chat
_NAMES = {
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "max_completion_tokens": "max_output_tokens",
}


async def respond(service: Service, body: ResponsesRequest) -> Response:
    """`POST /v1/responses`."""
    with fields_named(_NAMES):
        begun = begin(service, chat_request(body))
    answer = ResponseWriter(body, begun)
    if body.stream:
        return await sse.begun(answer.events())
    answer.add(await content_blocks.whole(begun))
    return JSONResponse(answer.response())


def chat_request(body: ResponsesRequest) -> ChatRequest:
    """The same as a chat; ApiError 400 where the items make no conversation."""
    asked: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "tools": [_tool(each.model_dump(exclude_none=True)) for each in body.tools or []],
        "tool_choice": body.tool_choice,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "stream": body.stream,
    }
    if isinstance(body.tool_choice, FunctionChoice):
        asked["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    if body.text and body.text.format:
        asked["response_format"] = _format(body.text.format)
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "chat_template_kwargs"):
        asked[name] = getattr(body, name)
    asked["thinking_token_budget"] = body.thinking_token_budget
    return validated(asked, "input")


def validated(asked: dict[str, Any], param: str) -> ChatRequest:
    """A chat made of another API's request; ApiError 400 where it can't be one."""
    try:
        return ChatRequest.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise ApiError(400, message, param, "invalid_value") from None


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if name in tool}}


def _format(given: TextFormat) -> dict[str, Any]:
    if given.type != "json_schema":
        return {"type": given.type}
    schema = {"name": given.name or "answer", "schema": given.schema_, "strict": given.strict}
    return {"type": "json_schema", "json_schema": schema}


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if body.instructions:
        found.append({"role": "system", "content": body.instructions})
    given = body.input
    items: Sequence[Item] = (
        [InputMessage(role="user", content=given)] if isinstance(given, str) else given
    )
    thought = ""
    for item in items:
        if isinstance(item, InputThought):
            thought = item.text()
        elif isinstance(item, InputResult):
            turn = {"role": "tool", "tool_call_id": item.call_id, "content": item.text()}
            found.append(turn)
        elif isinstance(item, InputMessage) and item.role != "assistant":
            found.append({"role": item.role, "content": item.text()})
        else:
            _add_answer(found, item, thought)
            thought = ""
    return found


def _add_answer(found: list[dict[str, Any]], item: InputMessage | InputCall, thought: str) -> None:
    """A text or a call of the assistant, which are one turn where they follow each other."""
    if thought or not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": None})
    turn = found[-1]
    if thought:
        turn["reasoning_content"] = thought
    if isinstance(item, InputMessage):
        turn["content"] = (turn["content"] or "") + item.text()
        return
    function = {"name": item.name, "arguments": item.arguments}
    turn.setdefault("tool_calls", []).append({"id": item.call_id, "function": function})


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class ResponseWriter:
    """Writes one response, whole or as events."""

    def __init__(self, body: ResponsesRequest, begun: Begun) -> None:
        self._body, self._begun = body, begun
        self._id, self._created = _id("resp"), int(time.time())
        self._items: list[dict[str, Any]] = []
        self._status = "in_progress"
        self._number = 0

    def add(self, said: Parts) -> None:
        """Put the whole of an answer into the response."""
        for _ in self._tell(said):
            pass

    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        body, done = self._body, self._status in ("completed", "incomplete")
        given = body.model_dump(exclude_none=True, by_alias=True)
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": self._items,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": given.get("text") or {"format": {"type": "text"}},
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": [{"parameters": None, "strict": None} | t for t in given.get("tools", [])],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "metadata": given.get("metadata", {}),
        }

    def _usage(self) -> dict[str, Any]:
        told = sse.usage(self._begun.prompt_tokens, self._begun.answers)
        details = told.get("completion_tokens_details", {"reasoning_tokens": 0})
        return {
            "input_tokens": told["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": told["completion_tokens"],
            "output_tokens_details": details,
            "total_tokens": told["total_tokens"],
        }

    async def events(self) -> AsyncGenerator[bytes]:
        """The events of a stream; an error in its midst is the last event."""
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())
        try:
            async with aclosing(content_blocks.streamed(self._begun)) as told:
                async for said in told:
                    for each in self._tell(said):
                        yield each
        except ApiError as error:
            what = error.body()["error"]
            yield self._event("error", **{k: what[k] for k in ("code", "message", "param")})
            return
        yield self._event(f"response.{self._status}", response=self.response())

    def _event(self, kind: str, **content: object) -> bytes:
        told = {"type": kind, "sequence_number": self._number} | content
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(told, ensure_ascii=False)}\n\n".encode()

    def _tell(self, said: Parts) -> Iterator[bytes]:
        if said.thought:
            yield from self._text("reasoning", "reasoning_text", said.thought)
        if said.text:
            yield from self._text("message", "output_text", said.text)
        if said.finish:
            yield from self._close(said.finish == "length")
            for call in said.calls:
                yield from self._call(call)
            self._status = "incomplete" if said.finish == "length" else "completed"

    def _text(self, item: str, part: str, text: str) -> Iterator[bytes]:
        if not self._items or self._items[-1]["type"] != item:
            yield from self._close(False)
            yield from self._open(item, part)
        self._items[-1]["content"][0]["text"] += text
        more: dict[str, Any] = {"logprobs": []} if part == "output_text" else {}
        yield self._event(f"response.{part}.delta", **self._place(), delta=text, **more)

    def _place(self) -> dict[str, Any]:
        at = len(self._items) - 1
        return {"item_id": self._items[-1]["id"], "output_index": at, "content_index": 0}

    def _open(self, item: str, part: str) -> Iterator[bytes]:
        new: dict[str, Any] = {"id": _id("rs"), "type": item, "summary": []}
        content: dict[str, Any] = {"type": part, "text": ""}
        if item == "message":
            new = {"id": _id("msg"), "type": item, "role": "assistant"}
            content |= {"annotations": [], "logprobs": []}
        self._items.append(new | {"status": "in_progress", "content": []})
        yield self._item("added")
        self._items[-1]["content"].append(content)
        yield self._event("response.content_part.added", **self._place(), part=content)

    def _item(self, what: str) -> bytes:
        at = len(self._items) - 1
        return self._event(f"response.output_item.{what}", output_index=at, item=self._items[-1])

    def _close(self, cut: bool) -> Iterator[bytes]:
        """End the item that is written."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = self._items[-1]
        part = item["content"][0]
        more: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
        done = f"response.{part['type']}.done"
        yield self._event(done, **self._place(), text=part["text"], **more)
        yield self._event("response.content_part.done", **self._place(), part=part)
        item["status"] = "incomplete" if cut else "completed"
        yield self._item("done")

    def _call(self, call: Call) -> Iterator[bytes]:
        item = {"id": _id("fc"), "type": "function_call", "call_id": call.id, "name": call.name}
        self._items.append(item | {"arguments": "", "status": "in_progress"})
        yield self._item("added")
        place = {"item_id": item["id"], "output_index": len(self._items) - 1}
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", **place, delta=call.arguments)
        yield self._event(f"{kind}.done", **place, name=call.name, arguments=call.arguments)
        self._items[-1] |= {"arguments": call.arguments, "status": "completed"}
        yield self._item("done")
