"""The text of a completion, which is a string or the messages that follow a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
_END_OF_THOUGHT = "</think>"


def answer_of(completion: Completion) -> str:
    """The last thing that the model says, without its thought."""
    said = _said(completion)
    return said[-1].rpartition(_END_OF_THOUGHT)[2].strip() if said else ""


def written_in(completion: Completion) -> str:
    """All that the model says in its turns, thoughts included; results of tools are not its own."""
    return "\n".join(_said(completion))


def _said(completion: Completion) -> list[str]:
    if isinstance(completion, str):
        return [completion]
    turns = [each for each in completion if each.get("role") == "assistant"]
    return [_content(each.get("content")) for each in turns]


def _content(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        # OpenAI's parts of a message
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return ""
