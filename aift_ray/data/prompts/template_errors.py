"""What a message says of a chat template that refuses a conversation, or does not write a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jinja2 import TemplateError

from aift_ray.data.examples import Message
from aift_ray.data.prompts.char_alignment import Content
from aift_ray.data.prompts.row_error import RowError


@contextmanager
def refusals(source: str) -> Iterator[None]:
    """RowError for whatever a template raises, with its line."""
    try:
        yield
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        where, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                where = line_of(source, trace.tb_lineno)
            trace = trace.tb_next
        reason = f"the chat template refuses this conversation: {error}{where}"
        raise RowError(reason) from None


def line_of(source: str, number: int) -> str:
    """A line of a template as messages show it, "" where there is none."""
    lines = source.splitlines()
    if not 0 < number <= len(lines):
        return ""
    line = lines[number - 1].strip()
    return f" (line {number} of the template: {line[:100]}{'…' if len(line) > 100 else ''})"


def lost_text(source: str, messages: Sequence[Message], content: Content) -> str:
    """What to say of a text that a template does not write, with the line that speaks of it."""
    message = messages[content.turn]
    calls = '"tool_calls"' in message.further
    words = (message.role, "tool_calls") if calls else (message.role,)
    lines = source.splitlines()
    number = next(
        (
            number
            for word in reversed(words)
            for number, line in enumerate(lines, 1)
            if re.search(rf"['\"]{word}['\"]|\.{word}\b", line)
        ),
        0,
    )
    what = {"call": "the call of", "thought": "the thought"}.get(content.kind, "the text")
    text = content.text if len(content.text) <= 40 else content.text[:40] + "…"
    shown = json.dumps(text, ensure_ascii=False)
    return (
        f"the chat template does not write {what} {shown} of message {content.turn + 1} "
        f"({message.role}){line_of(source, number)}"
    )
