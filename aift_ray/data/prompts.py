"""Examples to token ids with the mask of what is trained, and to the prompts that serving feeds.

Training and serving share this file: a prompt's ids are made the same way, border by border, so
the ids in front of an answer are those that the model sees when it is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from aift_ray.data.alpaca import FALLBACK_TEMPLATE, before_input, is_fallback
from aift_ray.data.encoded import Encoded
from aift_ray.data.examples import Example, Message
from aift_ray.data.safe_tokenizer import RowError, SafeTokenizer
from aift_ray.data.templates import (
    PINNED_DATE,
    ChatTemplate,
    Part,
    join,
)
from aift_ray.errors import ModelError, Problem

__all__ = ["PromptEncoder", "RowError", "digest"]

# Goes up whenever the same rows would get other ids, so that stored rows are made anew.
VERSION = 1
_COMPARED_ROWS = 100


class PromptEncoder:
    """Encodes rows for one tokenizer.

    A tokenizer without a chat template gets the Alpaca form (`### 指示:`) as its own, so that it
    is saved with the model.

    Args:
        tokenizer: a fast one with an end-of-text token.
        system_prompt: for rows without a system message; put in front of the first user turn
            where the template has no system role.
        extra_stop_ids: what the model's generation_config stops at.

    Attributes:
        used_fallback: the chat template is our Alpaca form.
        stop_ids: every id that ends a turn.
        generation_gap: the generation prompt differs from the training text at the same place.
        piecewise_rows: rows encoded in pieces so far, since a token would span prompt and answer.

    Raises:
        ModelError: no offsets, no end-of-text token, or a template that can't be trained on.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None = None,
        *,
        extra_stop_ids: Iterable[int] = (),
    ) -> None:
        _check(tokenizer)
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        if not tokenizer.chat_template:
            tokenizer.chat_template = FALLBACK_TEMPLATE
        self._template = ChatTemplate(tokenizer)
        self._safe = SafeTokenizer(tokenizer.backend_tokenizer)
        self.used_fallback = is_fallback(self._template.source)
        self.piecewise_rows = 0
        self._compared = 0
        self._eos: int = tokenizer.eos_token_id
        self._prefix = _prefix(tokenizer)
        self._folds_system = not self._has_system_role()
        self._header, turn_end, self.generation_gap = self._probe()
        self.stop_ids = list(dict.fromkeys([self._eos, *extra_stop_ids, turn_end]))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # what it keeps beside its arguments can't be sent, and is made anew
        return partial(PromptEncoder, extra_stop_ids=self.stop_ids), (
            self.tokenizer,
            self.system_prompt,
        )

    def encode(self, example: Example) -> Encoded:
        """Ids of a row and what is trained: each answer with one end-of-turn token, or a text.

        Raises:
            RowError: why the row can't be encoded.
        """
        safe = self._safe
        if example.kind == "text":
            return self._raw(safe.encode(safe.unmarked(example.output)), 0)
        if example.kind == "prompt":
            text = safe.unmarked(example.instruction + example.output)
            grown = safe.grow(text, [len(example.instruction)])
            self.piecewise_rows += grown.piecewise
            return self._raw(grown.ids, grown.counts[0])
        parts = self._parts(self._messages(example), False, self._template)
        prompt = join(parts, self._header, self._safe)
        if not prompt.spans:
            raise RowError("the conversation has no answer")
        grown = safe.grow(prompt.text, [span.start for span in prompt.spans])
        supervised = [False] * len(grown.ids)
        for span, first in zip(prompt.spans, grown.counts, strict=True):
            # No content makes a control token, so the turn's end is found by counting.
            after = first
            for _ in range(span.times):
                after = grown.ids.index(span.turn_end, after) + 1
            supervised[first:after] = [True] * (after - first)
        self.piecewise_rows += grown.piecewise
        self.generation_gap |= prompt.gap
        if self._compared < _COMPARED_ROWS:
            self._compared += 1
            before = grown.ids[: grown.counts[-1]]
            self.generation_gap |= before != self.prompt_ids(example)
        return Encoded(grown.ids, supervised)

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids that serving feeds for the last answer of a row.

        Raises:
            RowError: the row can't be rendered, or is a plain text.
        """
        if example.kind == "text":
            raise RowError("a plain text has no prompt")
        if example.kind == "prompt":
            return self._prefix + self._safe.encode(self._safe.unmarked(example.instruction))
        return self._chat_ids(self._messages(example)[:-1], self._template)

    def chat_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids that serving feeds for a conversation, with tools as OpenAI writes them.

        Args:
            options: further variables of the template, such as enable_thinking.

        Raises:
            RowError: the conversation can't be rendered.
        """
        plain = not tools and not options
        template = self._template if plain else ChatTemplate(self.tokenizer, tools, options)
        return self._chat_ids(self._with_system(messages), template)

    def answer_text(self, example: Example) -> str:
        """The expected last answer, as it stands in the row."""
        return example.messages[-1].content if example.kind == "messages" else example.output

    def digest(self) -> str:
        """sha256, in hex, of everything that changes ids."""
        return digest(self)

    def _chat_ids(self, messages: Sequence[Message], template: ChatTemplate) -> list[int]:
        prompt = join(self._parts(messages, True, template), self._header, self._safe)
        return self._safe.grow(prompt.text, [span.start for span in prompt.spans]).ids

    def _raw(self, ids: list[int], first: int) -> Encoded:
        """A row without template; supervised from ids[first] on."""
        unsupervised = len(self._prefix) + first
        supervised = [False] * unsupervised + [True] * (len(ids) - first + 1)
        return Encoded([*self._prefix, *ids, self._eos], supervised)

    def _messages(self, example: Example) -> list[Message]:
        if example.kind == "messages":
            return self._with_system(example.messages)
        question = example.instruction
        if example.input:
            question += before_input(self._template.source) + example.input
        return self._with_system([Message("user", question), Message("assistant", example.output)])

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        chat = list(messages)
        if self.system_prompt and chat and chat[0].role != "system":
            chat.insert(0, Message("system", self.system_prompt))
        if self._folds_system and len(chat) > 1 and chat[0].role == "system":
            system, user = chat[:2]
            chat[:2] = [Message(user.role, f"{system.content}\n\n{user.content}")]
        return chat

    def _parts(
        self, messages: Sequence[Message], generation: bool, template: ChatTemplate
    ) -> list[Part]:
        """The rendering, with the template's control strings under the safe tokenizer's names."""
        return [
            Part(self._safe.literal(part.text)) if part.content is None else part
            for part in template.parts(messages, generation, self._safe)
        ]

    def _has_system_role(self) -> bool:
        messages = [Message("system", "規則"), Message("user", "質問")]
        try:
            return "規則" in self._template.render(messages, generation=True)
        except RowError:
            return False

    def _probe(self) -> tuple[str, int, bool]:
        """The header before an answer, the id that ends a turn, and whether there is a gap."""
        question, answer = Message("user", "質問"), Message("assistant", "答え")
        try:
            parts = self._parts([question], True, self._template)
            if len(parts) == 1:
                raise RowError("it does not write what the user says")
            header = parts[-1].text
            parts = self._parts([question, answer], False, self._template)
            prompt = join(parts, header, self._safe)
        except RowError as error:
            remedy = "mend the model folder's chat template, or remove it to use the Alpaca form"
            raise ModelError([Problem("chat_template", str(error), remedy)]) from None
        return header, prompt.spans[-1].turn_end, prompt.gap


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    problems = []
    if not tokenizer.is_fast:
        remedy = "convert it to tokenizer.json (transformers.convert_slow_tokenizer)"
        problems.append(Problem("tokenizer", "it is a slow one, without offsets", remedy))
    if tokenizer.eos_token_id is None:
        remedy = "set eos_token in tokenizer_config.json"
        problems.append(Problem("tokenizer", "it has no end-of-text token (eos_token)", remedy))
    if problems:
        raise ModelError(problems)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a plain text, such as BOS."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    starts = range(len(whole) - len(plain) + 1)
    return next((whole[:at] for at in starts if whole[at : at + len(plain)] == plain), [])


def digest(encoder: PromptEncoder) -> str:
    """sha256, in hex, of everything that changes ids: tokenizer, template, system prompt, us."""
    tokenizer = encoder.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left over from earlier calls of the tokenizer; they change no ids of ours.
    state.update(truncation=None, padding=None)
    parts = [
        VERSION,
        PINNED_DATE.isoformat(),
        state,
        tokenizer.get_chat_template(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        encoder.system_prompt,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
