"""The literal text of a prompt: which characters the chat template wrote, and which the row did.

A conversation is rendered twice, once as it is and once with a sentinel in place of each content.
What stands between the sentinels is the template's own, and only there a control string such as
`<|im_end|>` may become its token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Message
from aift_ray.data.safe_tokenizer import MARK, RowError, SafeTokenizer
from aift_ray.errors import ModelError, Problem

_PART = re.compile(f"{MARK}part-([0-9]+)\ufdd1")
_THOUGHTS = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)
# What clients send back of R1, whose prompt holds the opening tag.
_RETURNED = re.compile(r"()(.*?)(</think>)(.*)", re.DOTALL)

# Llama 3.1's own default. Any fixed day does: a moving one would change token caches and resumed
# runs at midnight, and serving would see other prompts than training.
PINNED_DATE = date(2024, 7, 26)


@dataclass(frozen=True, slots=True)
class Content:
    """A text that the row put into a conversation.

    Attributes:
        turn: index of its message.
        text: the text before the template, which may strip it.
        answer: True for what an assistant says, False for its thoughts and for other roles.
        assistant: True for all that an assistant's message holds.
    """

    turn: int
    text: str
    answer: bool
    assistant: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a rendering: `content` is None where the template wrote it."""

    text: str
    content: Content | None = None


def pin_dates(template: str) -> str:
    """The template with `strftime_now` fixed to PINNED_DATE; others are returned unchanged."""
    if "strftime_now" not in template:
        return template
    formats = re.findall(r"strftime_now\(\s*['\"]([^'\"]+)['\"]", template)
    days = json.dumps({each: PINNED_DATE.strftime(each) for each in formats}, ensure_ascii=False)
    default = PINNED_DATE.isoformat()
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ {days}.get(format, '{default}') }}}}"
        f"{{%- endmacro %}}{{{{ '' }}}}{template}"
    )


class ChatTemplate:
    """The tokenizer's chat template, rendered to parts.

    Args:
        tokenizer: has a `chat_template`.
        tools: what the template offers to the model, as OpenAI writes them.
        options: further variables of the template, such as enable_thinking.

    Raises:
        ModelError: there are several templates and none is the default.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._options = dict(options or {})
        self._tools: list[Any] = list(tools)
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError([Problem("chat_template", str(error))]) from None
        self._pinned = pin_dates(self.source)

    def render(self, messages: Sequence[Message], generation: bool) -> str:
        """The template's text for a conversation.

        Args:
            generation: end with the header of the answer that is to come.

        Raises:
            RowError: the template refuses the conversation.
        """
        chat = [
            {"role": each.role, "content": each.content} | json.loads(each.further or "{}")
            for each in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                chat,
                tools=cast(Any, self._tools) or None,
                chat_template=self._pinned,
                add_generation_prompt=generation,
                tokenize=False,
                **self._options,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RowError(f"the chat template refuses this conversation: {error}") from None
        return str(text)

    def parts(
        self, messages: Sequence[Message], generation: bool, safe: SafeTokenizer
    ) -> list[Part]:
        """The same text as `render`, cut into what the template wrote and what the row did.

        Contents of users and systems are told apart too, unless the template treats them by what
        they say; this is allowed while none of them holds a control string.

        Raises:
            RowError: a content is not found where the template puts it, or holds our marker.
        """
        for each in messages:
            safe.unmarked(each.content)
        given = [json.dumps(each, ensure_ascii=False) for each in (self._tools, self._options)]
        for text in (*given, *(each.further for each in messages)):
            # they are not told apart from what the template writes
            if safe.has_control(safe.unmarked(text)):
                raise RowError(
                    "a tool, a call of one, a thought or a variable of the template holds a "
                    "control string of the model"
                )
        full = self.render(messages, generation)
        try:
            return self._aligned(full, messages, generation)
        except RowError as error:
            refusal = error
        if generation:
            with suppress(RowError):
                return self._aligned(full, messages, generation, thoughts=_RETURNED)
        others = (each.content for each in messages if each.role != "assistant")
        if any(safe.has_control(text) for text in others):
            raise refusal
        return self._aligned(full, messages, generation, all_roles=False)

    def _aligned(
        self,
        full: str,
        messages: Sequence[Message],
        generation: bool,
        all_roles: bool = True,
        thoughts: re.Pattern[str] = _THOUGHTS,
    ) -> list[Part]:
        contents: list[Content] = []
        marked = [
            replace(each, content=_mark(each, turn, contents, thoughts))
            if all_roles or each.role == "assistant"
            else each
            for turn, each in enumerate(messages)
        ]
        return _align(full, self.render(marked, generation), contents)


def _mark(message: Message, turn: int, contents: list[Content], thoughts: re.Pattern[str]) -> str:
    def sentinel(text: str, answer: bool) -> str:
        contents.append(Content(turn, text, answer, message.role == "assistant"))
        return f"{MARK}part-{len(contents) - 1}\ufdd1"

    if message.role != "assistant":
        return sentinel(message.content, False)
    if message.further and not message.content:
        # only calls of tools: a template writes no content where there is none
        return ""
    # Qwen3 writes an empty think block around an answer without one, so the tags have to stay.
    found = thoughts.fullmatch(message.content)
    if found is None:
        return sentinel(message.content, True)
    opening, inner, closing, answer = found.groups()
    return opening + sentinel(inner, False) + closing + sentinel(answer, True)


def _align(full: str, marked: str, contents: list[Content]) -> list[Part]:
    """Walk `full` along the literals of `marked`; nothing is searched, an answer may hold all."""
    pieces = _PART.split(marked)
    literals, order = pieces[::2], [contents[int(index)] for index in pieces[1::2]]
    if [each for each in order if each.answer] != [each for each in contents if each.answer]:
        raise RowError("the chat template drops or repeats an answer")
    if not full.startswith(literals[0]):
        raise RowError("the chat template writes other text around this conversation")
    parts, position = [Part(literals[0])], len(literals[0])
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
            raise RowError(f"the chat template changes the text of turn {content.turn + 1}")
        parts += [Part(form, content), Part(literal)]
        position += len(form) + len(literal)
    if position != len(full):
        raise RowError("the chat template writes other text after this conversation")
    return parts


def _forms(text: str) -> tuple[str, ...]:
    """What templates make of a content, most complete first."""
    lines = (text, text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    return (*lines, text.lstrip(), text.rstrip(), text.strip())


@dataclass(frozen=True, slots=True)
class Span:
    """What is trained of an assistant turn.

    Attributes:
        start, end: where it stands in the text.
        turn_end: id of the token that ends the turn.
        times: how often that token stands in the span; the last one ends it.
    """

    start: int
    end: int
    turn_end: int
    times: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendering that is ready to be encoded by the safe tokenizer.

    Attributes:
        text: with the template's control strings under the safe tokenizer's names.
        spans: one for each assistant turn.
        gap: an answer does not follow the header that serving writes.
    """

    text: str
    spans: list[Span]
    gap: bool


def join(parts: Sequence[Part], header: str, safe: SafeTokenizer) -> Prompt:
    """Put parts together and find what is trained.

    Args:
        parts: of `ChatTemplate.parts`, the literals rewritten by `SafeTokenizer.literal`.
        header: what serving writes between a user's turn and the answer, rewritten too.

    Raises:
        RowError: an answer isn't followed by an end-of-turn token.
    """
    text = "".join(part.text for part in parts)
    spans: list[Span] = []
    position = said = 0  # said: where the last turn before this one ended
    gap = False
    begin: int | None = None
    for part, following in zip(parts, [*parts[1:], Part("")], strict=True):
        content = part.content
        if content is not None and content.assistant and begin is None:
            begin, missing = _start(text, said, position, header)
            gap |= missing
        position += len(part.text)
        if content is not None and (content.answer or not content.assistant):
            said = position
        if content is not None and content.answer and begin is not None:
            found = safe.first_control(text, position, position + len(following.text))
            if found is None:
                raise RowError("the chat template writes no end-of-turn token after an answer")
            name, turn_end, end = found
            spans.append(Span(begin, end, turn_end, text.count(name, begin, end)))
            begin = None
    return Prompt(text, spans, gap)


def _start(text: str, said: int, content: int, header: str) -> tuple[int, bool]:
    """Where an answer's span starts, and whether the header is not there in full.

    The model writes all that follows the header, such as Harmony's channel or Qwen3's empty think
    block. Where other contents weren't told apart, the header is the last one before the answer.
    """
    if text.startswith(header, said):
        return said + len(header), False
    for known, missing in ((header, False), (header.partition("<think>")[0], True)):
        found = text.rfind(known, said, content) if known else -1
        if found >= 0:
            return found + len(known), missing
    return content, True
