"""The last answer of a conversation as the model is to write it, behind its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aift_ray.data.examples import Message
from aift_ray.data.prompts.char_alignment import TextSpan
from aift_ray.data.prompts.chat_template import ChatTemplate
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer

_THOUGHTS_AWAY = "--data.train_thoughts none leaves thoughts out"


class FinalAnswer:
    """The last turn of a conversation as the model is to write it behind its prompt."""

    def __init__(
        self, safe: SafeTokenizer, template: ChatTemplate, messages: Sequence[Message], turn: int
    ) -> None:
        self._template, self._messages, self._turn = template, messages, turn
        self._tags = template.tags
        self._opening, self._closing = (
            safe.literal(tag) for tag in (self._tags.opening, self._tags.closing)
        )

    def parts(self, before: Sequence[TextSpan], full: Sequence[TextSpan]) -> list[TextSpan]:
        """The parts behind the prompt.

        Args:
            before: the prompt that serving feeds.
            full: the rendering that ends with the answer.

        Raises:
            RowError: the answer does not go on from the prompt, or a thought has no place in it.
        """
        header = text_of(before[_behind(before, self._turn) :])
        rest = list(full[_behind(full, self._turn) :])
        thinks = hidden(self._template, self._messages[self._turn], full, self._turn)
        if not thinks and text_of(rest).startswith(header):
            return _cut(rest, len(header))
        opened = re.search(re.escape(self._opening) + r"(\s*)$", header)
        header = header[: opened.start()] if opened else header
        if not text_of(rest).startswith(header) or not (opened or thinks):
            what = f"the chat template writes message {self._turn + 1} otherwise than after"
            raise RowError(f"{what} the prompt that serving feeds", self._other_prompt())
        if not opened and not self._tags.known:
            what = f"the chat template has no place for the thought of message {self._turn + 1}"
            raise RowError(what, f"{_THOUGHTS_AWAY}; or write it into the text of the answer")
        return self._with_thought(_cut(rest, len(header)), opened[1] if opened else None)

    def _with_thought(self, rest: list[TextSpan], blank: str | None) -> list[TextSpan]:
        """The answer behind its thought, which may be empty; `blank` follows the opened tag."""
        message, turn = self._messages[self._turn], self._turn
        found = self._tags.within(message.content, returned=True)
        opening = [] if blank is not None else [TextSpan(self._opening)]
        if found is not None:
            _, inner, _, said = found.groups()
            thought = inner.removeprefix(blank or "")
            body = [
                TextSpan(said, part.content)
                if part.content and part.content.answer and part.content.turn == turn
                else part
                for part in rest
            ]
            return [*opening, TextSpan(thought), TextSpan(self._closing), *body]
        lead = "\n" if blank is None else ""
        written = rest[0].text if rest else ""
        if self._closing in written:
            # the template closes the thought by itself, and some open an empty one before
            own = written.rpartition(self._opening)[2]
            if message.thought:
                own = own[: own.startswith("\n")] + own.lstrip()
            return [*opening, TextSpan(lead + message.thought), TextSpan(own), *rest[1:]]
        tail = TextSpan(f"\n{self._closing}\n\n")
        return [*opening, TextSpan(lead + message.thought.strip("\n")), tail, *rest]

    def _other_prompt(self) -> str:
        if self._tags.thinks(self._messages[self._turn]):
            return f"leave the thought open with chat_template_kwargs; or {_THOUGHTS_AWAY}"
        return ""


def text_of(parts: Sequence[TextSpan]) -> str:
    """The text of parts that stand one after the other."""
    return "".join(part.text for part in parts)


def _behind(parts: Sequence[TextSpan], turn: int) -> int:
    """Index behind the last content of the turns before `turn`."""
    places = [i for i, part in enumerate(parts) if part.content and part.content.turn < turn]
    return places[-1] + 1 if places else 0


def _cut(parts: list[TextSpan], length: int) -> list[TextSpan]:
    """The parts without their first characters."""
    for index, part in enumerate(parts):
        if length < len(part.text) or not length:
            return [TextSpan(part.text[length:], part.content), *parts[index + 1 :]]
        length -= len(part.text)
    return []


def hidden(template: ChatTemplate, message: Message, parts: Sequence[TextSpan], turn: int) -> bool:
    """Whether a rendering leaves out what the assistant thinks in a turn."""
    if not template.tags.thinks(message):
        return False
    return not any(p.content and p.content.turn == turn and p.content.kind == "thought"
                   for p in parts)  # fmt: skip


def lost_thoughts(
    template: ChatTemplate, messages: Sequence[Message], parts: Sequence[TextSpan]
) -> set[int]:
    """Turns whose thoughts a rendering leaves out."""
    return {
        turn
        for turn, each in enumerate(messages)
        if each.role == "assistant" and hidden(template, each, parts, turn)
    }
