"""Tokens to text as it becomes certain: whole characters only, and nothing behind a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from aift_ray.serving.engines.interface import Finish, Token


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that is certain, with the tokens that stand in it.

    Attributes:
        tokens: in streaming, a token is told with the text that it completes.
        finish: set on the last piece.
        thought: what a model that thinks before it answers has thought; it is no part of `text`.
        stop: the stop string that ended the answer.
        prompt: with the first piece: the tokens of the prompt, where they were asked for.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish: Finish | Literal["tool_calls"] | None = None
    thought: str = ""
    stop: str | None = None
    prompt: tuple[Token, ...] = ()


class TextMaker:
    """Decodes one answer; its pieces, joined, are the whole answer's text.

    Args:
        stops: none of them empty; the answer ends before the first that comes up.

    Attributes:
        thought_tokens: tokens so far that are no part of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.thought_tokens = 0
        self._tokenizer, self._stops = tokenizer, stops
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        # those that no text was made of yet
        self._untold: list[int] = []
        self._sent = 0
        # where the answer begins; and where the tokens of _ids do
        self._start = self._decoded = 0
        self._text = ""
        self._pending: list[tuple[int, Token]] = []

    def push(self, token: Token) -> TextDelta | None:
        """What the next token makes certain; the last piece where it has `finish`."""
        if token.finish != "stop":
            self._take(token)
        if token.finish:
            self._complete()
        return self._tell(token.finish)

    def _take(self, token: Token) -> None:
        self._ids.append(token.id)
        self._pending.append((len(self._text), token))
        self._untold.append(token.id)
        try:
            new = self._stream.step(self._tokenizer, token.id) or ""
        except Exception:
            new = self._beyond_half_a_character(token.id)
        if new:
            self._text += new
            self._untold = []

    def _beyond_half_a_character(self, last: int) -> str:
        """What is told where bytes never became a character: DecodeStream fails on them."""
        new = self._tokenizer.decode(self._untold, skip_special_tokens=True)
        own = self._tokenizer.decode([last], skip_special_tokens=True)
        self._stream = DecodeStream(ids=[last], skip_special_tokens=True)
        self._ids, self._decoded = [last], len(self._text) + len(new) - len(own)
        return new

    def _complete(self) -> None:
        """DecodeStream drops a cut character at the end, which decode shows as U+FFFD."""
        before, text = self._text[: self._decoded], self._text[self._decoded :]
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if whole.startswith(text):
            self._text = before + whole

    def _tell(self, finish: Finish | None) -> TextDelta | None:
        cut = self._cut()
        if cut is not None:
            return self._piece(cut[0], "stop", cut[1])
        if finish:
            return self._piece(len(self._text), finish)
        certain = len(self._text) - held(self._text[self._sent :], self._stops)
        return self._piece(certain, None) if certain > self._sent else None

    def _piece(self, end: int, finish: Finish | None, stop: str | None = None) -> TextDelta:
        text, self._sent = self._text[self._sent : end], end
        whole = finish is not None and stop is None
        told = tuple(token for start, token in self._pending if start < end or whole)
        self._pending = [pair for pair in self._pending if pair[0] >= end]
        return TextDelta(text, told, finish, stop=stop)

    def _cut(self) -> tuple[int, str] | None:
        """Where the first stop string begins, and which it is."""
        longest = max(map(len, self._stops), default=0)
        start = max(self._start, self._sent - longest)
        found = [(self._text.find(stop, start), stop) for stop in self._stops]
        return min((pair for pair in found if pair[0] >= 0), default=None)


def held(tail: str, stops: Sequence[str]) -> int:
    """Length of the longest end of a text that could begin one of the strings."""
    return max(
        (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(tail) + 1))
            if tail.endswith(stop[:length])
        ),
        default=0,
    )
