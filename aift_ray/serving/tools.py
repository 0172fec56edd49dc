"""Tools: what a request offers, how an answer is held to a call, what an answer calls."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.conversation import NamedTool
from aift_ray.serving.detokenizer import TextDelta
from aift_ray.serving.engines.interface import Token
from aift_ray.serving.openai_requests import ChatRequest

# as Hermes and Qwen write calls; Llama and Mistral write the bare JSON
_MARK = "<tool_call>"
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_MARKED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def offered(body: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the model may call, as templates read them.

    Raises:
        ApiError: 400, a choice of none of them, or two of one name.
    """
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise ApiError(400, "tool_choice needs tools", "tool_choice")
    if body.tool_choice == "none":
        return []
    found = [tool.for_template() for tool in body.tools or []]
    for tool in found:
        tool["function"].setdefault("parameters", _NOTHING)
    names = [tool["function"]["name"] for tool in found]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have the same name", "tools")
    choice = body.tool_choice
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise ApiError(400, f"there is no tool {choice.function.name!r}", "tool_choice")
    return found


def held_to(body: ChatRequest, tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The schema of the call that the answer has to be; None: it may be any text."""
    choice = body.tool_choice
    if choice is None or (isinstance(choice, str) and choice != "required"):
        return None
    if body.response_format is not None and body.response_format.type != "text":
        message = "contradicts a tool_choice that asks for a call"
        raise ApiError(400, message, "response_format")
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, NamedTool):
        functions = [each for each in functions if each["name"] == choice.function.name]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": _closed(function["parameters"]),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same with no arguments but those that are named, unless the schema speaks of others.

    What follows it follows the schema as well; a small model would go on inventing names.
    """
    named = parameters.get("properties")
    open_ones = {"properties", "type", "required", "title", "description", "$defs", "definitions"}
    if not isinstance(named, dict) or not named or not set(parameters) <= open_ones:
        return parameters
    required = parameters.get("required", [])
    if not isinstance(required, list) or not all(name in named for name in required):
        return parameters
    return parameters | {"additionalProperties": False}


@dataclass(frozen=True)
class Call:
    """A call of a function; `arguments` in JSON, as OpenAI tells them."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def told(self) -> dict[str, Any]:
        """As it stands in a message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class CallReader:
    """Tells the text of one answer from the calls in it.

    Args:
        names: of the functions that can be called; what calls others is text.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._text = ""
        self._sent = 0
        self._tokens: tuple[Token, ...] = ()

    def push(self, piece: TextDelta) -> tuple[TextDelta, list[Call]]:
        """The text that is no part of a call; the calls, once the answer has ended."""
        self._text += piece.text
        self._tokens += piece.tokens
        end = self._certain()
        calls: list[Call] = []
        finish = piece.finish
        if finish:
            calls = _calls(self._text[end:], self._names)
            if calls:
                finish = "tool_calls"
            else:
                end = len(self._text)
        said = self._text[self._sent : end]
        self._sent = end
        tokens: tuple[Token, ...] = ()
        if said or finish:
            tokens, self._tokens = self._tokens, ()
        return replace(piece, text=said, tokens=tokens, finish=finish), calls

    def _certain(self) -> int:
        """Where what may be a call begins."""
        if self._text.lstrip()[:1] in ("{", "[") or not self._text.strip():
            return 0
        at = self._text.find(_MARK)
        if at >= 0:
            return at
        longest = min(len(_MARK) - 1, len(self._text))
        lengths = range(longest, 0, -1)
        held = next((n for n in lengths if self._text.endswith(_MARK[:n])), 0)
        return max(self._sent, len(self._text) - held)


def _calls(text: str, names: Collection[str]) -> list[Call]:
    """What a text calls; nothing where any of it is no call of a known function."""
    parts = _MARKED.findall(text) or [text]
    try:
        found = [json.loads(part) for part in parts]
    except (ValueError, RecursionError):
        return []
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    calls = [_call(each, names) for each in found]
    return [] if None in calls else [call for call in calls if call]


def _call(found: object, names: Collection[str]) -> Call | None:
    if not isinstance(found, dict) or found.get("name") not in names:
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if not isinstance(arguments, dict):
        return None
    return Call(found["name"], json.dumps(arguments, ensure_ascii=False))
