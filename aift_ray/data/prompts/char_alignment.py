"""The literal text of a prompt: which characters the chat template wrote, and which the row did.

A conversation is rendered twice, once as it is and once with a sentinel in place of each content.
What stands between the sentinels is the template's own, and only there a control string such as
`<|im_end|>` may become its token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from aift_ray.data.examples import Message
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import MARK

_PART = re.compile(f"{MARK}part-([0-9]+)\ufdd1")
# what a reasoning model's template writes around thoughts
_CLOSING = re.compile(
    r"(?:<|\[)/[\w:|]*?(?:think(?:ing)?|thoughts?|reason(?:ing)?)[\w:|]*(?:>|\])", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Content:
    """A text that the row put into a conversation.

    Attributes:
        turn: index of its message.
        text: the text before the template, which may strip it.
        kind: text of a user, a system or a tool; what an assistant says (answer), what it thinks
            (thought), the name of a function that it calls (call).
    """

    turn: int
    text: str
    kind: Literal["text", "answer", "thought", "call"]

    @property
    def answer(self) -> bool:
        """Whether an assistant says it."""
        return self.kind == "answer"

    @property
    def assistant(self) -> bool:
        """Whether it is part of an assistant's message."""
        return self.kind != "text"


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A piece of a rendering: `content` is None where the template wrote it."""

    text: str
    content: Content | None = None


class ThoughtTags:
    """What stands around a thought in the text of an answer: the tags that a template speaks of.

    Args:
        source: the template; one that speaks of none has the usual ones.

    Attributes:
        opening, closing: such as `<think>` and `</think>`.
        known: the template itself speaks of them.
    """

    def __init__(self, source: str) -> None:
        found = _CLOSING.search(source)
        self.known = found is not None
        self.closing = found[0] if found else "</think>"
        self.opening = self.closing.replace("/", "", 1)
        opening, closing = re.escape(self.opening), re.escape(self.closing)
        self._within = re.compile(rf"(\s*{opening})(.*?)({closing})(.*)", re.DOTALL)
        self._returned = re.compile(rf"()(.*?)({closing})(.*)", re.DOTALL)

    def within(self, text: str, returned: bool = False) -> re.Match[str] | None:
        """Groups opening, thought, closing and answer of a text that begins with a thought.

        Args:
            returned: so does one whose opening tag stood in the prompt, as R1 writes it.
        """
        if self.closing not in text:
            return None
        found = self._within.fullmatch(text)
        if found is None and returned and self.opening not in text:
            return self._returned.fullmatch(text)
        return found

    def thinks(self, message: Message) -> bool:
        """Whether an assistant's message holds a thought that is not blank."""
        if message.thought:
            return True
        found = self.within(message.content, returned=self.known)
        return found is not None and bool(found[2].strip())


class Marking:
    """Puts sentinels in place of what the row says.

    Args:
        returned: contents whose opening tag stood in the prompt have thoughts too.
        all_roles: users, systems and tools are told apart too.
    """

    def __init__(self, tags: ThoughtTags, returned: bool = False, all_roles: bool = True) -> None:
        self._tags, self._returned, self._all_roles = tags, returned, all_roles

    def mark(self, messages: Sequence[Message]) -> tuple[list[Message], list[Content]]:
        """The messages with sentinels, and what each of them stands for."""
        contents: list[Content] = []
        marked = [
            self._marked(each, turn, contents)
            if self._all_roles or each.role == "assistant"
            else each
            for turn, each in enumerate(messages)
        ]
        return marked, contents

    def _marked(self, message: Message, turn: int, contents: list[Content]) -> Message:
        def sentinel(text: str, kind: Literal["text", "answer", "thought", "call"]) -> str:
            contents.append(Content(turn, text, kind))
            return f"{MARK}part-{len(contents) - 1}\ufdd1"

        if message.role != "assistant":
            return Message(message.role, sentinel(message.content, "text"), message.further)
        thought = sentinel(message.thought, "thought") if message.thought else ""
        # Qwen3 writes an empty think block around an answer without one, so the tags have to stay.
        found = self._tags.within(message.content, self._returned)
        if not message.content and message.further:
            # only calls of tools: a template writes no content where there is none
            content = ""
        elif found is None:
            content = sentinel(message.content, "answer")
        else:
            opening, inner, closing, answer = found.groups()
            # a template may write another thing for a thought that is blank
            within = sentinel(inner, "thought") if inner.strip() else inner
            content = opening + within + closing + sentinel(answer, "answer")
        further = message.further
        if '"tool_calls"' in further:
            read = json.loads(further)
            for call in read["tool_calls"]:
                call["function"]["name"] = sentinel(call["function"]["name"], "call")
            further = json.dumps(read, ensure_ascii=False)
        return Message(message.role, content, further, thought, message.trained)


def marked_parts(marked: str, contents: Sequence[Content]) -> list[TextSpan]:
    """A marked rendering as parts whose contents are their sentinels."""
    pieces = _PART.split(marked)
    parts = [TextSpan(pieces[0])]
    for index, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        content = contents[int(index)]
        parts += [TextSpan(f"{MARK}part-{index}\ufdd1", content), TextSpan(literal)]
    return parts


def align(full: str, marked: str, contents: Sequence[Content]) -> list[TextSpan]:
    """Walk `full` along the literals of `marked`; nothing is searched, an answer may hold all.

    Raises:
        RowError: the two renderings differ in more than the contents.
    """
    pieces = _PART.split(marked)
    literals, order = pieces[::2], [contents[int(index)] for index in pieces[1::2]]
    calling = {each.turn for each in contents if each.kind == "call"}
    if _answers(order, calling) != _answers(contents, calling):
        raise RowError("the chat template drops or repeats an answer")
    if not full.startswith(literals[0]):
        raise RowError("the chat template writes other text around this conversation")
    parts, position = [TextSpan(literals[0])], len(literals[0])
    for content, literal in zip(order, literals[1:], strict=True):
        form = next(
            (
                form
                for form in _forms(content.text)
                if full.startswith(form, position)
                and full.startswith(literal, position + len(form))
            ),
            None,
        )
        if form is None:
            raise RowError(f"the chat template changes the text of message {content.turn + 1}")
        parts += [TextSpan(form, content), TextSpan(literal)]
        position += len(form) + len(literal)
    if position != len(full):
        raise RowError("the chat template writes other text after this conversation")
    return parts


def _answers(contents: Sequence[Content], calling: Collection[int]) -> list[Content]:
    """What assistants say; what stands beside a call may be cut from the history, as thoughts."""
    return [each for each in contents if each.kind == "answer" and each.turn not in calling]


def _forms(text: str) -> Iterator[str]:
    """What templates make of a content, most complete first; some write it as JSON."""
    yield text
    yield from (text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    yield from (text.lstrip(), text.rstrip(), text.strip())
    yield from (in_json(text), in_json(text.strip()))


def in_json(text: str) -> str:
    """A text as it stands within the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def holds(full: str, text: str) -> bool:
    """Whether a rendering holds a text, in one of the forms that templates give it."""
    stripped = text.strip()
    return stripped in full or in_json(stripped) in full
