"""Examples to token ids with the mask of what is trained, and to the prompts that serving feeds.

Training and serving share this file: a prompt's ids are made the same way, border by border, so
the ids in front of an answer are those that the model sees when it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.alpaca import FALLBACK_TEMPLATE, before_input, is_fallback
from aift_ray.data.prompts.answer_spans import Prompt, Span, literal_parts
from aift_ray.data.prompts.chat_template import ChatTemplate
from aift_ray.data.prompts.control_tokens import control_ids
from aift_ray.data.prompts.conversations import Renderer
from aift_ray.data.prompts.encoder_digest import digest
from aift_ray.data.prompts.fast_tokenizer import check, prefix
from aift_ray.data.prompts.prompt_notes import RAW, not_shown, without_thoughts
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import Bordered, Grown, SafeTokenizer
from aift_ray.data.prompts.supervision import ANSWERS, Supervision
from aift_ray.data.prompts.template_probe import has_system_role, learn_calls, probe
from aift_ray.data.token_types import Encoded, EncodedRow

__all__ = ["PromptEncoder", "RowError"]
# texts to be encoded, what became of them, and what the row becomes
Steps = Generator[list[Bordered], list[Grown], EncodedRow]

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
        supervision: which parts of a conversation are trained.
        safe: of this tokenizer, where it is made already.

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
        supervision: Supervision = ANSWERS,
        safe: SafeTokenizer | None = None,
    ) -> None:
        check(tokenizer)
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.supervision = supervision
        if not tokenizer.chat_template:
            tokenizer.chat_template = FALLBACK_TEMPLATE
        self._template = ChatTemplate(tokenizer)
        ends = [tokenizer.eos_token_id, *extra_stop_ids]
        if safe is None:
            control = control_ids(tokenizer, self._template, ends)
            safe = SafeTokenizer(tokenizer.backend_tokenizer, control)
        self._safe = safe
        self.used_fallback = is_fallback(self._template.source)
        self.piecewise_rows = 0
        self._compared = 0
        self._eos: int = tokenizer.eos_token_id
        self._prefix = prefix(tokenizer)
        self._folds_system = not has_system_role(self._template)
        self._joiner, self._turn_end, self.generation_gap = probe(self._template, safe)
        ends.append(self._turn_end)
        ends += learn_calls(self._template, safe, self._joiner, ends)
        self.stop_ids = list(dict.fromkeys(ends))
        self._renderer = Renderer(self._safe, self._joiner, supervision)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # what it keeps beside its arguments can't be sent, and is made anew
        further: dict[str, Any] = {"extra_stop_ids": self.stop_ids, "supervision": self.supervision}
        return partial(PromptEncoder, **further, safe=self._safe), (
            self.tokenizer,
            self.system_prompt,
        )

    def rows(self, example: Example) -> EncodedRow:
        """Ids of a row and what is trained: each answer with one end-of-turn token, or a text.

        A conversation whose answers the template writes otherwise once they are history becomes
        several, each behind the ids that serving feeds for it.

        Raises:
            RowError: why the row can't be encoded.
        """
        (found,) = self.finish([self.steps(example)])
        if isinstance(found, RowError):
            raise found
        return found

    def finish(self, rows: Sequence[Steps]) -> list[EncodedRow | RowError]:
        """What the `steps` of rows come to; the texts of all are encoded in one call."""
        found: dict[int, EncodedRow | RowError] = {}
        # None starts a row
        replies: dict[int, Any] = dict.fromkeys(range(len(rows)))
        while replies:
            wanted: dict[int, list[Bordered]] = {}
            for number, reply in replies.items():
                try:
                    wanted[number] = rows[number].send(reply)
                except StopIteration as end:
                    found[number] = end.value
                except RowError as error:
                    found[number] = error
            grown = iter(self._safe.grow_all([text for texts in wanted.values() for text in texts]))
            replies = {}
            for number, texts in wanted.items():
                reply = list(islice(grown, len(texts)))
                wrong = next((each for each in reply if isinstance(each, RowError)), None)
                if wrong:
                    found[number] = wrong
                else:
                    replies[number] = reply
        return [found[number] for number in range(len(rows))]

    def steps(self, example: Example) -> Steps:
        """As `rows`: gives the texts to be encoded, and is to be sent what became of them."""
        if example.row:
            ids = self.prompt_ids(example)
            return EncodedRow([Encoded(ids, [False] * len(ids))])
        if example.kind in ("text", "prompt"):
            unused = tuple(f"{RAW}{key}" for key in example.unused)
            grown = yield [self._raw_text(example)]
            return EncodedRow([self._encode_raw(example, *grown)], not_shown=unused)
        template = self._template.given(example.tools, example.options)
        messages, left_out = self._messages(example), False
        if self.supervision.thoughts == "none":
            messages, left_out = without_thoughts(messages, template.tags)
        made = self._renderer.renderings(template, messages)
        grown = yield [
            (prompt.text, [span.start for span in prompt.spans]) for prompt, _ in made.prompts
        ]
        pieces = [
            self._encode_prompt(*each, ids) for each, ids in zip(made.prompts, grown, strict=True)
        ]
        prompt, trained = made.prompts[-1]
        if self._compared < _COMPARED_ROWS:
            self._compared += 1
            last = next(span for span in reversed(prompt.spans) if span.turn in trained)
            asked = self._chat_ids(messages[: last.turn], template)
            self.generation_gap |= pieces[-1].ids[: len(asked)] != asked
        notes = not_shown(template, messages, example, prompt.text, left_out, bool(made.lost))
        return EncodedRow(pieces, made.split, notes)

    def encode(self, example: Example) -> Encoded:
        """As `rows`, of a row that stays one.

        Raises:
            RowError: it can't be encoded, or becomes several.
        """
        encoded = self.rows(example).pieces
        if len(encoded) > 1:
            raise RowError(f"the row becomes {len(encoded)}, one an answer")
        return encoded[0]

    def _raw_text(self, example: Example) -> Bordered:
        if example.kind == "text":
            return self._safe.unmarked(example.output), []
        text = self._safe.unmarked(example.instruction + example.output)
        return text, [len(example.instruction)]

    def _encode_raw(self, example: Example, grown: Grown) -> Encoded:
        if example.kind == "text":
            return self._raw(grown.ids, 0)
        self.piecewise_rows += grown.piecewise
        return self._raw(grown.ids, grown.counts[0])

    def _encode_prompt(self, prompt: Prompt, trained: frozenset[int], grown: Grown) -> Encoded:
        supervised = [False] * len(grown.ids)
        end = self.supervision.end
        ends = {span.turn_end for span in prompt.spans} | {self._turn_end}
        for span, first in zip(prompt.spans, grown.counts, strict=True):
            if span.turn not in trained:
                continue
            self.generation_gap |= span.gap
            # No content makes a control token, so the turn's end is found by counting.
            after = first
            for _ in range(span.times):
                after = grown.ids.index(span.turn_end, after) + 1
            if self.supervision.thoughts == "masked" and span.thought_end > span.start:
                first = max(first, self._shared(prompt, span, grown.ids))
            stop = after - (end == "none")
            supervised[first:stop] = [True] * (stop - first)
        if end == "all":
            supervised = [
                flag or token in ends for flag, token in zip(supervised, grown.ids, strict=True)
            ]
        self.piecewise_rows += grown.piecewise
        return Encoded(grown.ids, supervised)

    def _shared(self, prompt: Prompt, span: Span, ids: list[int]) -> int:
        """How many ids hold nothing behind the thought of a turn."""
        borders = [each.start for each in prompt.spans if each.start <= span.start]
        alone = self._safe.grow(prompt.text[: span.thought_end], borders).ids
        pairs = zip(alone, ids, strict=False)
        return next((at for at, (one, other) in enumerate(pairs) if one != other), len(alone))

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids that serving feeds for the last answer of a row.

        Raises:
            RowError: the row can't be rendered, or is a plain text.
        """
        if example.kind == "text":
            raise RowError("a plain text has no prompt")
        if example.kind == "prompt":
            return self._prefix + self._safe.encode(self._safe.unmarked(example.instruction))
        template = self._template.given(example.tools, example.options)
        return self._chat_ids(self._messages(example)[:-1], template)

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
        written = json.dumps(list(tools), ensure_ascii=False) if tools else ""
        variables = json.dumps(dict(options), ensure_ascii=False) if options else ""
        template = self._template.given(written, variables)
        return self._chat_ids(self._with_system(messages), template)

    def answer_text(self, example: Example) -> str:
        """The expected last answer, as it stands in the row."""
        return example.messages[-1].content if example.kind == "messages" else example.output

    def digest(self) -> str:
        """sha256, in hex, of everything that changes ids."""
        control = self._safe.control_ids
        return digest(self.tokenizer, control, self.system_prompt, self.supervision)

    def _chat_ids(self, messages: Sequence[Message], template: ChatTemplate) -> list[int]:
        parts = literal_parts(template.parts(messages, True, self._safe), self._safe)
        prompt = self._joiner.join(parts)
        return self._safe.grow(prompt.text, [span.start for span in prompt.spans]).ids

    def _raw(self, ids: list[int], first: int) -> Encoded:
        """A row without template; supervised from ids[first] on."""
        unsupervised = len(self._prefix) + first
        supervised = [False] * unsupervised + [True] * (len(ids) - first)
        supervised.append(self.supervision.end != "none")
        return Encoded([*self._prefix, *ids, self._eos], supervised)

    def _messages(self, example: Example) -> list[Message]:
        if example.kind == "messages":
            return self._with_system(example.messages)
        question = example.instruction
        if example.input:
            question += before_input(self._template.source) + example.input
        answer = Message("assistant", example.output, thought=example.thought)
        return self._with_system([*example.messages, Message("user", question), answer])

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        chat = list(messages)
        if self.system_prompt and chat and chat[0].role != "system":
            chat.insert(0, Message("system", self.system_prompt))
        if self._folds_system and len(chat) > 1 and chat[0].role == "system":
            system, user = chat[:2]
            head = f"{system.content}\n\n" if system.content.strip() else ""
            chat[:2] = [Message(user.role, head + user.content, user.further)]
        return chat
