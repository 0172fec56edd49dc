"""Harmony, which gpt-oss writes: a turn of messages, each in a channel of its own.

`analysis` is the thought, `final` the answer, `commentary` what is said on the way; a message
with `to=functions.NAME` in its header calls a tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from aift_ray.serving.detokenizer import TextDelta, TextMaker
from aift_ray.serving.engines.interface import Constraint, Finish, Grammar, Token
from aift_ray.serving.reasoning import LONGEST, only
from aift_ray.serving.token_bytes import TokenBytes, whole

_CALLED = re.compile(r"to=functions\.([\w-]+)")
# what the control tokens of a turn are called
_NAMES = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_THOUGHT, _ANSWER = "analysis", "final"


@dataclass(frozen=True)
class Channels:
    """The control tokens of Harmony in a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    token_bytes: TokenBytes
    start: int
    channel: int
    message: int
    end: int

    def ids(self, text: str) -> list[int]:
        """The tokens of a name."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def reader(self, prompt: Sequence[int], stops: Sequence[str]) -> TextMaker:
        """See thinking.Thinking."""
        return ChannelReader(self, stops)

    def answers(self, prompt: Sequence[int]) -> bool:
        """See thinking.Thinking."""
        return False

    def held(
        self, prompt: Sequence[int], inner: Grammar | None, budget: int | None, ends: frozenset[int]
    ) -> Grammar:
        """See thinking.Thinking."""
        return _ChannelGrammar(self, inner, budget, ends)


def channels_of(
    tokenizer: PreTrainedTokenizerBase, template: str, bytes_: TokenBytes
) -> Channels | None:
    """The channels that a template knows; None: it has none."""
    added = tokenizer.get_added_vocab()
    if any(name not in added for name in _NAMES) or _NAMES[1] not in template:
        return None
    return Channels(tokenizer, bytes_, *(added[name] for name in _NAMES))


class ChannelReader(TextMaker):
    """Texts of one answer; calls are written as `<tool_call>` around their JSON."""

    def __init__(self, channels: Channels, stops: Sequence[str]) -> None:
        super().__init__(channels.tokenizer.backend_tokenizer, stops)
        self._channels = channels
        self._header: list[int] | None = []
        # of the message that is written: its channel, and the tool that it calls
        self._channel, self._called = "", ""
        self._thought = TextMaker(self._tokenizer)
        self._call: list[int] = []
        self._new = ""

    def _take(self, token: Token) -> None:
        known = self._channels
        if token.id == known.message and self._header is not None:
            self._open(str(known.tokenizer.decode(self._header)))
        elif token.id in (known.start, known.end):
            self._close()
            self._header = []
        elif token.id == known.channel and self._header is None:
            self._close()
            self._header = [token.id]
        elif self._header is not None:
            self._header.append(token.id)
        elif self._called:
            self._call.append(token.id)
        elif self._channel == _THOUGHT:
            piece = self._thought.push(token)
            self._new += piece.text if piece else ""
            self.thought_tokens += 1
        else:
            super()._take(token)

    def _open(self, header: str) -> None:
        """A message begins."""
        self._header = None
        called = _CALLED.search(header)
        self._called = called[1] if called else ""
        self._channel = _THOUGHT if _THOUGHT in header else _ANSWER
        if self._channel == _THOUGHT and (self._new or self.thought_tokens):
            self._new += "\n"

    def _close(self) -> None:
        """A message ends."""
        if self._called:
            said = str(self._channels.tokenizer.decode(self._call, skip_special_tokens=True))
            name = json.dumps(self._called)
            self._write(f'<tool_call>\n{{"name": {name}, "arguments": {said}}}\n</tool_call>')
        elif self._channel == _ANSWER and self._ids:
            self._complete()
            self._write("")
        self._called, self._channel, self._call = "", "", []
        self._thought = TextMaker(self._tokenizer)

    def _write(self, text: str) -> None:
        self._text += text
        self._decoded, self._ids, self._untold = len(self._text), [], []
        self._stream = DecodeStream(skip_special_tokens=True)

    def _complete(self) -> None:
        if self._called and self._header is None:
            self._close()
        header = self._header or []
        if self._channels.channel not in header and not self._text:
            # no message at all: the model did not write what its template asks for
            self._text = str(self._channels.tokenizer.decode(header, skip_special_tokens=True))
            self._decoded = len(self._text)
        super()._complete()

    def _tell(self, finish: Finish | None) -> TextDelta | None:
        thought, self._new = self._new, ""
        piece = super()._tell(finish)
        if piece is None:
            return TextDelta("", thought=thought) if thought else None
        return replace(piece, thought=thought)


@dataclass
class _ChannelGrammar:
    channels: Channels
    inner: Grammar | None
    budget: int | None
    ends: frozenset[int]
    # it is not one schema that holds all of the answer
    schema: str = ""

    def begin(self) -> Constraint:
        """The state at the start of an answer."""
        return ChannelConstraint(self)


class ChannelConstraint:
    """Leaves the thought free, ends it in time, and holds the final channel to a grammar."""

    def __init__(self, held: _ChannelGrammar) -> None:
        known = self._channels = held.channels
        self._inner = held.inner.begin() if held.inner else None
        self._left, self._thought = held.budget, 0
        self._ends = torch.tensor(sorted(held.ends))
        self._final = [known.start, *known.ids("assistant"), known.channel]
        self._final += [*known.ids(_ANSWER), known.message]
        # where the turn is: at its start, in a header, in a thought, in the answer
        self._place = "start"
        self._header: list[int] = []
        self._forced: list[int] = []
        self._said = b""

    def allow(self, logits: torch.Tensor) -> None:
        """Set the logits (1, vocabulary) of forbidden tokens to -inf, in place."""
        known = self._channels
        if self._forced:
            only(logits, [self._forced[0]])
        elif self._place == "answer":
            if self._inner:
                self._inner.allow(logits)
        elif self._place == "thought":
            if self._inner:
                logits[0, self._ends.to(logits.device)] = float("-inf")
        elif self._inner and self._place == "start":
            only(logits, [known.channel])
        elif self._inner and not self._header:
            only(logits, [known.ids(_THOUGHT)[0], known.ids(_ANSWER)[0]])
        elif self._inner:
            only(logits, self._rest())
        elif self._place == "header" and not self._header and self._spent:
            logits[0, known.ids(_THOUGHT)[0]] = float("-inf")

    @property
    def _spent(self) -> bool:
        return self._left is not None and self._thought >= self._left

    def _rest(self) -> list[int]:
        """What may follow in a header that names the thought or the answer."""
        known, at = self._channels, len(self._header)
        names = (known.ids(name) for name in (_THOUGHT, _ANSWER))
        return [
            (name[at] if at < len(name) else known.message)
            for name in names
            if name[:at] == self._header
        ]

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        known = self._channels
        if self._place == "answer":
            self._answers(token)
            return
        if self._forced:
            self._forced.pop(0)
        if token == known.message:
            said = str(known.tokenizer.decode(self._header))
            self._place = "thought" if _THOUGHT in said else "answer"
            if self._place == "thought":
                self._spend(0)
        elif token in (known.channel, known.start):
            self._place, self._header = "header", []
        elif self._place == "header":
            self._header.append(token)
        elif self._place == "thought":
            if token != known.end:
                self._said = self._said[-LONGEST:] + (known.token_bytes.of(token) or b"")
                self._spend(1)
            else:
                self._place = "start"
                self._forced = list(self._final) if self._inner else []

    def _answers(self, token: int) -> None:
        known = self._channels
        if self._inner:
            self._inner.advance(token)
        elif token in (known.end, known.start, known.channel):
            self._place, self._header = "header", []

    def _spend(self, tokens: int) -> None:
        self._thought += tokens
        late = self._left is not None and self._thought >= self._left + LONGEST
        if self._spent and not self._forced and (late or whole(self._said)):
            self._forced = [self._channels.end]
