"""The tokenizer's chat template: rendered to text, and to parts of the template's and the row's."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Message
from aift_ray.data.prompts.char_alignment import (
    Marking,
    TextSpan,
    ThoughtTags,
    align,
    holds,
    marked_parts,
)
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer
from aift_ray.data.prompts.template_errors import refusals
from aift_ray.data.readers.row_keys import THOUGHTS
from aift_ray.errors import ModelError, Problem

# Llama 3.1's own default. Any fixed day does: a moving one would change token caches and resumed
# runs at midnight, and serving would see other prompts than training.
PINNED_DATE = date(2024, 7, 26)
_SHAPES = 512
# a conversation with sentinels for its contents
Shape = tuple[Message, ...]
# the argument of the call that `learn_calls` makes, and its id
CALLED_WITH, CALL_ID = "value_c", "call00001"


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


@dataclass(frozen=True)
class CallForm:
    """How a template wants turns that call tools.

    Attributes:
        no_content: the content of a turn without words is null, not "".
        text_arguments: arguments are text in JSON, not an object.
    """

    no_content: bool = False
    text_arguments: bool = False


class ChatTemplate:
    """The tokenizer's chat template, with the tools and variables of one conversation.

    Args:
        tokenizer: has a `chat_template`.

    Attributes:
        source: the template.
        tags: what it writes around thoughts.
        thought_keys: keys of a message in which it reads thoughts.

    Raises:
        ModelError: there are several templates and none is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tools: list[Any] = []
        self._options: dict[str, Any] = {}
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError([Problem("chat_template", str(error))]) from None
        self._pinned = pin_dates(self.source)
        self.tags = ThoughtTags(self.source)
        self.thought_keys = tuple(key for key in THOUGHTS if _reads(self.source, key))
        self._calls = CallForm()
        self._shapes = lru_cache(maxsize=_SHAPES)(self._rendered_shape)
        self.given = lru_cache(maxsize=64)(self._given)

    def _given(self, tools: str, options: str) -> ChatTemplate:
        """The template with tools and variables, in JSON; "" for none."""
        if not tools and not options:
            return self
        made = copy.copy(self)
        made._tools = json.loads(tools or "[]")
        made._options = json.loads(options or "{}")
        made._shapes = lru_cache(maxsize=_SHAPES)(made._rendered_shape)
        return made

    @property
    def tools(self) -> list[Any]:
        """What the model is offered."""
        return self._tools

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template shows the model which tools there are."""
        function: dict[str, Any] = {"name": "any_tool_at_all", "description": "何でもします。"}
        function |= {"parameters": {"type": "object", "properties": {}}}
        tools = json.dumps([{"type": "function", "function": function}], ensure_ascii=False)
        try:
            return "any_tool_at_all" in self._given(tools, "").render(
                [Message("user", "質問")], True
            )
        except RowError:
            return False

    def reads(self, variable: str) -> bool:
        """Whether the template speaks of a variable."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source) is not None

    def render(self, messages: Sequence[Message], generation: bool) -> str:
        """The template's text for a conversation.

        Args:
            generation: end with the header of the answer that is to come.

        Raises:
            RowError: the template refuses the conversation.
        """
        chat = [self._for_template(each) for each in messages]
        with refusals(self.source):
            text = self._tokenizer.apply_chat_template(
                chat,
                tools=cast(Any, self._tools) or None,
                chat_template=self._pinned,
                add_generation_prompt=generation,
                tokenize=False,
                **self._options,
            )
        return str(text)

    def _for_template(self, message: Message) -> dict[str, Any]:
        made: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thought:
            made |= dict.fromkeys(self.thought_keys, message.thought)
        if not message.further:
            return made
        made |= json.loads(message.further)
        if "tool_calls" in made:
            if self._calls.no_content and not message.content:
                made["content"] = None
            if self._calls.text_arguments:
                for call in made["tool_calls"]:
                    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                    call["function"]["arguments"] = arguments
        return made

    def learn_calls(self) -> list[Message]:
        """Find out how the template wants calls of tools; a conversation that shows it, or []."""
        if "tool_calls" not in self.source:
            return []
        function = {"name": "function_a", "arguments": {"key_b": CALLED_WITH}}
        further = json.dumps({"tool_calls": [{"id": CALL_ID, "type": "function",
                                              "function": function}]})  # fmt: skip
        chat = [
            Message("user", "質問"),
            Message("assistant", "", further),
            Message("tool", "結果", json.dumps({"tool_call_id": CALL_ID})),
        ]
        for text_arguments in (False, True):
            for no_content in (False, True):
                self._calls = CallForm(no_content, text_arguments)
                with suppress(RowError):
                    text = self.render(chat, True)
                    if all(word in text for word in ("function_a", "key_b", CALLED_WITH, "結果")):
                        return chat
        self._calls = CallForm()
        return []

    def parts(
        self, messages: Sequence[Message], generation: bool, safe: SafeTokenizer
    ) -> list[TextSpan]:
        """The same text as `render`, cut into what the template wrote and what the row did.

        Contents of users and systems are told apart too, unless the template treats them by what
        they say; this is allowed while none of them holds a control string.

        Raises:
            RowError: a content is not found where the template puts it, or holds our marker.
        """
        return self.parts_and_shape(messages, generation, safe)[0]

    def parts_and_shape(
        self, messages: Sequence[Message], generation: bool, safe: SafeTokenizer
    ) -> tuple[list[TextSpan], Shape | None]:
        """The parts, and the conversation with sentinels for contents: what others may share.

        None stands where the template treats the contents by what they say.
        """
        for each in messages:
            safe.unmarked(each.content)
            safe.unmarked(each.thought)
        for text in (*self._written(), *(each.further for each in messages)):
            # they are not told apart from what the template writes
            if text and safe.has_control(safe.unmarked(text)):
                raise RowError(
                    "a tool, a call of one or a variable of the template holds a control string "
                    "of the model",
                    "write it otherwise, for example with a blank within it",
                )
        full = self.render(messages, generation)
        try:
            return self._aligned(full, messages, generation, Marking(self.tags))
        except RowError as error:
            refusal = error
        if generation or self.tags.known:
            with suppress(RowError):
                marking = Marking(self.tags, returned=True)
                return self._aligned(full, messages, generation, marking)
        others = [each.content for each in messages if each.role != "assistant"]
        if any(safe.has_control(text) for text in others):
            raise refusal
        marking = Marking(self.tags, all_roles=False)
        parts, _ = self._aligned(full, messages, generation, marking)
        if not generation:
            _check_held(full, messages)
        return parts, None

    def _written(self) -> list[str]:
        """Tools and variables, in JSON, those that there are."""
        given = (self._tools, self._options)
        return [json.dumps(each, ensure_ascii=False) for each in given if each]

    def shape(self, messages: Sequence[Message], generation: bool) -> list[TextSpan]:
        """The parts of a conversation with sentinels for its contents.

        Raises:
            RowError: the template refuses the conversation.
        """
        marked, contents = Marking(self.tags).mark(messages)
        return marked_parts(self._shapes(tuple(marked), generation), contents)

    def _rendered_shape(self, marked: Shape, generation: bool) -> str:
        return self.render(marked, generation)

    def _aligned(
        self, full: str, messages: Sequence[Message], generation: bool, marking: Marking
    ) -> tuple[list[TextSpan], Shape]:
        marked, contents = marking.mark(messages)
        shape = tuple(marked)
        return align(full, self._shapes(shape, generation), contents), shape


def _reads(source: str, key: str) -> bool:
    return re.search(rf"\.{key}\b|['\"]{key}['\"]", source) is not None


def _check_held(full: str, messages: Sequence[Message]) -> None:
    for turn, each in enumerate(messages):
        if each.role != "assistant" and not holds(full, each.content):
            raise RowError(f"the chat template changes the text of message {turn + 1}")
