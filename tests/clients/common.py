"""What the clients ask: each is a program that gets URL, key and model as its arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

URL, KEY, MODEL = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")
QUESTION = "大阪の天気は？"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"type": "string", "enum": ["東京", "大阪"]}},
    "required": ["town"],
    "additionalProperties": False,
}
TOWNS = ("東京", "大阪")
FUNCTION: dict[str, Any] = {
    "name": "weather",
    "description": "町の天気を調べます。",
    "parameters": SCHEMA,
}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
THINKING: dict[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": True},
    "thinking_token_budget": 6,
}


def refused(kind: type[Exception], call: Callable[..., Any], **asked: Any) -> Any:
    """The error with which a call fails."""
    try:
        call(**asked)
    except kind as error:
        return error
    raise AssertionError(f"{asked} was taken")
