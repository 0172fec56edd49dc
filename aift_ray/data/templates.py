"""The literal text of a prompt: which characters the chat template wrote, and which the row did.

A conversation is rendered twice, once as it is and once with a sentinel in place of each content.
What stands between the sentinels is the template's own, and only there a control string such as
`<|im_end|>` may become its token. To encode both parts in one go, `SafeTokenizer` gives the control
tokens other names, which no content holds, and the template's parts are written with these names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Message
from aift_ray.errors import ModelError, Problem

# A noncharacter, so that no sane text holds the marker; a row that does is refused.
MARK = "\ufdd0aift-"
_PART = re.compile(f"{MARK}part-([0-9]+)\ufdd1")
_THOUGHTS = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)
_BLANK = " \t\r\n\u3000\u2581"

# Llama 3.1's own default. Any fixed day does: a moving one would change token caches and resumed
# runs at midnight, and serving would see other prompts than training.
PINNED_DATE = date(2024, 7, 26)

FALLBACK_INPUT = "\n\n### 入力:\n"
_FALLBACK_NAME = "{#- aift_ray: Alpaca-ja -#}"
FALLBACK_TEMPLATE = (
    _FALLBACK_NAME + "{%- if bos_token is defined and bos_token -%}{{ bos_token }}{%- endif -%}"
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。' }}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'system' -%}"
    "{{ message['content'] }}{%- elif message['role'] == 'user' -%}"
    "{{ '\\n\\n### 指示:\\n' + message['content'] }}{%- else -%}"
    "{{ '\\n\\n### 応答:\\n' + message['content'] + eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n\\n### 応答:\\n' }}{%- endif -%}"
)


class RowError(ValueError):
    """Why one row can't be encoded; the caller adds file and line."""


class _Unaligned(RowError):
    """The two renderings of a conversation don't agree."""


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


def is_fallback(template: str) -> bool:
    """Whether a chat template is ours, also after it was saved with a model and loaded again."""
    return template.startswith(_FALLBACK_NAME)


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

    Raises:
        ModelError: there are several templates and none is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
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
        chat = [{"role": each.role, "content": each.content} for each in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                chat,
                chat_template=self._pinned,
                add_generation_prompt=generation,
                tokenize=False,
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
        if any(MARK in each.content for each in messages):
            raise RowError("the text holds U+FDD0 'aift-', which is reserved")
        full = self.render(messages, generation)
        try:
            return _align(full, *self._marked(messages, generation, all_roles=True))
        except RowError:
            others = (each.content for each in messages if each.role != "assistant")
            if any(safe.has_control(text) for text in others):
                raise
        return _align(full, *self._marked(messages, generation, all_roles=False))

    def _marked(
        self, messages: Sequence[Message], generation: bool, all_roles: bool
    ) -> tuple[str, list[Content]]:
        contents: list[Content] = []
        marked = [
            Message(each.role, _mark(each, turn, contents))
            if all_roles or each.role == "assistant"
            else each
            for turn, each in enumerate(messages)
        ]
        return self.render(marked, generation), contents


def _mark(message: Message, turn: int, contents: list[Content]) -> str:
    def sentinel(text: str, answer: bool) -> str:
        contents.append(Content(turn, text, answer, message.role == "assistant"))
        return f"{MARK}part-{len(contents) - 1}\ufdd1"

    if message.role != "assistant":
        return sentinel(message.content, False)
    # Qwen3 writes an empty think block around an answer without one, so the tags have to stay.
    thoughts = _THOUGHTS.fullmatch(message.content)
    if thoughts is None:
        return sentinel(message.content, True)
    opening, inner, closing, answer = thoughts.groups()
    return opening + sentinel(inner, False) + closing + sentinel(answer, True)


def _align(full: str, marked: str, contents: list[Content]) -> list[Part]:
    """Walk `full` along the literals of `marked`; nothing is searched, an answer may hold all."""
    pieces = _PART.split(marked)
    literals, order = pieces[::2], [contents[int(index)] for index in pieces[1::2]]
    if [each for each in order if each.answer] != [each for each in contents if each.answer]:
        raise _Unaligned("the chat template drops or repeats an answer")
    if not full.startswith(literals[0]):
        raise _Unaligned("the chat template writes other text around this conversation")
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
            raise _Unaligned(f"the chat template changes the text of turn {content.turn + 1}")
        parts += [Part(form, content), Part(literal)]
        position += len(form) + len(literal)
    if position != len(full):
        raise _Unaligned("the chat template writes other text after this conversation")
    return parts


def _forms(text: str) -> tuple[str, ...]:
    """What templates make of a content, most complete first."""
    return (
        text,
        text.strip("\n"),
        text.lstrip("\n"),
        text.rstrip("\n"),
        text.lstrip(),
        text.rstrip(),
        text.strip(),
    )


class SafeTokenizer:
    """A copy of a tokenizer in which control strings are ordinary text.

    The tokens keep their ids and get names that `literal` writes, so one call encodes the
    template's control tokens and the row's look-alikes each as what they are. Every added token
    counts as control, special or not, but for runs of blanks (GPT-NeoX has such tokens for code).

    Raises:
        ModelError: the copy does not give the same ids.
    """

    def __init__(self, backend: Tokenizer) -> None:
        state: dict[str, Any] = json.loads(backend.to_str())
        tokens = [each for each in state["added_tokens"] if each["content"].strip(_BLANK)]
        self.names = {each["content"]: f"{MARK}token-{each['id']}\ufdd1" for each in tokens}
        for each in tokens:
            # Matched in the raw text: with `normalized`, Llama-2's `</s>` is lost behind a word.
            each.update(content=self.names[each["content"]], normalized=False, single_word=False)
        _rename(state["model"], self.names)
        state.update(post_processor=None, truncation=None, padding=None)
        self._tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(state))
        self.control_ids = frozenset(each["id"] for each in tokens)
        for content, name in self.names.items():
            if self._tokenizer.token_to_id(name) != backend.token_to_id(content):
                raise ModelError([Problem("tokenizer", f"{content!r} changes its id in a copy")])
        longest_first = sorted(self.names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._named = re.compile(f"{MARK}token-([0-9]+)\ufdd1")
        self.literal = lru_cache(maxsize=4096)(self._literal)
        # "\n" in front shows whether a piece is encoded otherwise at the start of a text.
        alone = self.encode("あ")[0]
        self.dummy_prefix = self.encode("\nあ")[0][-len(alone) :] != alone

    def has_control(self, text: str) -> bool:
        """Whether a plain tokenizer would find a control token in the text."""
        return self._control.search(text) is not None

    def _literal(self, text: str) -> str:
        return self._control.sub(lambda match: self.names[match[0]], text)

    def first_control(self, text: str, start: int, end: int) -> tuple[int, int] | None:
        """Id and end of the first control token that `literal` wrote into text[start:end]."""
        match = self._named.search(text, start, end)
        return None if match is None else (int(match[1]), match.end())

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and for each the code point of the text where it begins; nothing is added."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [begin for begin, _ in encoding.offsets]


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename vocabulary entries, so that no model finds them in text (Unigram finds any piece)."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        return
    model["vocab"] = {names.get(piece, piece): index for piece, index in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model and not names.keys().isdisjoint(vocabulary):
        pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        model["merges"] = [
            pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))
        ]
