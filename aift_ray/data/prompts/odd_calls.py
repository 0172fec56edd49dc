"""Calls in a row that its own tools do not offer: trained as they are, counted, and told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aift_ray.data.examples import Message

# kinds of what is odd about calls; a name follows in the keys that are counted
ODD_CALLS = {
    "call:unoffered:": "functions are called that are not among the row's tools",
    "call:undeclared:": "calls have arguments that their tool does not declare",
    "call:missing:": "calls lack arguments that their tool requires",
    "call:untold:": "functions are called in rows without tools: nothing tells the model of them",
    "call:unanswered:": "calls are followed by no result",
}
_UNOFFERED, _UNDECLARED, _MISSING, _UNTOLD, _UNANSWERED = ODD_CALLS


def odd_calls(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What is odd about the calls of a row: each key once, a kind of `ODD_CALLS` and a name.

    Args:
        tools: what the row offers, as templates read it.
    """
    if not any('"tool_calls"' in each.further for each in messages):
        return ()
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    further = [json.loads(each.further or "{}") for each in messages]
    answered = {each.get("tool_call_id") for each in further}
    found = dict[str, None]()
    for place, each in enumerate(further, 1):
        for call in each.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if name in offered:
                found |= dict.fromkeys(_odd_arguments(name, arguments, offered[name]))
            elif offered:
                found[_UNOFFERED + name] = None
            elif name not in messages[0].content:
                found[_UNTOLD + name] = None
            if place < len(messages) and call["id"] not in answered:
                found[_UNANSWERED + name] = None
    return tuple(found)


def _odd_arguments(
    name: str, arguments: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    known, required = declared.get("properties"), declared.get("required")
    others = declared.get("additionalProperties") or declared.get("patternProperties")
    if isinstance(known, dict) and not others:
        yield from (f"{_UNDECLARED}{name}.{key}" for key in arguments if key not in known)
    if isinstance(required, list):
        yield from (f"{_MISSING}{name}.{key}" for key in required if key not in arguments)
