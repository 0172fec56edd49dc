"""Models that think before they answer: the thought between two tags, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from aift_ray.serving.detokenizer import TextDelta, TextMaker, held
from aift_ray.serving.engines.interface import Constraint, Finish, Grammar, Token
from aift_ray.serving.token_bytes import TokenBytes, whole

# how the families write it: DeepSeek-R1 and Qwen, Magistral, Seed
PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
# tokens of a prompt's end that can hold a tag and the newlines behind it
_TAIL = 16
# bytes, and so tokens, of a character: a thought is not cut within one
LONGEST = 4
Place = Literal["before", "inside", "behind"]


class Thinking(Protocol):
    """How a model tells its thought from its answer."""

    def reader(self, prompt: Sequence[int], stops: Sequence[str]) -> TextMaker:
        """Makes the texts of an answer to a prompt; `stops` end the answer, not the thought."""

    def answers(self, prompt: Sequence[int]) -> bool:
        """Whether an answer may come at once where a prompt ends."""

    def held(
        self, prompt: Sequence[int], inner: Grammar | None, budget: int | None, ends: frozenset[int]
    ) -> Grammar:
        """What holds the answer, but not the thought, to a grammar.

        Args:
            budget: tokens after which the thought is ended.
            ends: ids that end a turn; with a grammar they can't end a thought.
        """


@dataclass(frozen=True)
class ReasoningTags:
    """Thoughts between two tags, each a token or several.

    Attributes:
        marks: text of those tags that are control tokens, which decoding leaves out.
    """

    tokenizer: PreTrainedTokenizerBase
    opening: str
    closing: str
    token_bytes: TokenBytes
    marks: dict[int, str] = field(default_factory=dict)

    def place(self, prompt: Sequence[int]) -> Place:
        """Where an answer to a prompt begins: R1's prompts open the thought."""
        end = str(self.tokenizer.decode(list(prompt[-_TAIL:]))).rstrip()
        if end.endswith(self.opening):
            return "inside"
        return "behind" if end.endswith(self.closing) else "before"

    def ids(self, text: str) -> list[int]:
        """The tokens of a tag."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def beyond(self) -> list[tuple[int, bytes]]:
        """Tokens that may hold the end of a closing tag and more than blanks behind it."""
        last = self.closing.encode()[-1:]
        if len(self.ids(self.closing)) == 1:
            return []
        said = ((id_, self.token_bytes.of(id_) or b"") for id_ in range(len(self.tokenizer)))
        return [(id_, text) for id_, text in said if text.partition(last)[2].strip()]

    def reader(self, prompt: Sequence[int], stops: Sequence[str]) -> TextMaker:
        """See Thinking."""
        return TagReader(self, self.place(prompt), stops)

    def answers(self, prompt: Sequence[int]) -> bool:
        """See Thinking."""
        return self.place(prompt) != "inside"

    def held(
        self, prompt: Sequence[int], inner: Grammar | None, budget: int | None, ends: frozenset[int]
    ) -> Grammar:
        """See Thinking."""
        return _TagGrammar(self, self.place(prompt), inner, budget, ends)


def tags_of(
    tokenizer: PreTrainedTokenizerBase, template: str, bytes_: TokenBytes
) -> ReasoningTags | None:
    """The tags that a template knows; None: its model does not think."""
    known = (pair for pair in PAIRS if pair[0] in template or pair[1] in template)
    opening, closing = next(known, ("", ""))
    if not opening:
        return None
    found = ReasoningTags(tokenizer, opening, closing, bytes_)
    for tag in (opening, closing):
        ids = found.ids(tag)
        if len(ids) == 1 and bytes_.of(ids[0]) is None:
            found.marks[ids[0]] = tag
    return found


class TagReader(TextMaker):
    """Texts of one answer with the thought before it told apart.

    Blanks around the thought, and those between it and the answer, are left out.

    Args:
        place: where the first token stands.
    """

    def __init__(self, tags: ReasoningTags, place: Place, stops: Sequence[str]) -> None:
        super().__init__(tags.tokenizer.backend_tokenizer, stops)
        self._tags, self._place = tags, place
        self._thought, self._fresh = False, False

    def _take(self, token: Token) -> None:
        if self._place != "behind":
            self.thought_tokens += 1
        mark = self._tags.marks.get(token.id)
        if mark is None:
            super()._take(token)
            return
        self._complete()
        self._pending.append((len(self._text), token))
        self._text += mark
        self._decoded, self._ids, self._untold = len(self._text), [], []
        self._stream = type(self._stream)(skip_special_tokens=True)

    def _tell(self, finish: Finish | None) -> TextDelta | None:
        if self._place == "before" and not self._begun(finish):
            return None
        thought = self._think(finish) if self._place == "inside" else ""
        if self._place == "inside":
            tokens: tuple[Token, ...] = ()
            return TextDelta("", tokens, finish, thought) if thought or finish else None
        piece = self._answer(finish)
        if piece is None:
            return TextDelta("", thought=thought) if thought else None
        return replace(piece, thought=thought)

    def _begun(self, finish: Finish | None) -> bool:
        """Whether the first letters tell if there is a thought."""
        opening, said = self._tags.opening, self._text.lstrip()
        if said.startswith(opening):
            self._place = "inside"
            self._sent = len(self._text) - len(said) + len(opening)
        elif finish or not opening.startswith(said):
            self._place = "behind"
            self.thought_tokens = 0
        return self._place != "before"

    def _think(self, finish: Finish | None) -> str:
        """What of the thought is certain and not told yet."""
        closing = self._tags.closing
        end = self._text.find(closing, self._sent)
        closed = end >= 0
        if not closed:
            end = len(self._text)
            end -= 0 if finish else held(self._text[self._sent :], (closing,))
        thought = self._text[self._sent : end].rstrip()
        self._sent = end if closed or finish else self._sent + len(thought)
        if not self._thought:
            thought = thought.lstrip()
        self._thought |= bool(thought)
        if closed:
            self._place, self._fresh = "behind", True
            self._sent += len(closing)
            self._start = self._sent
        return thought

    def _answer(self, finish: Finish | None) -> TextDelta | None:
        if self._fresh:
            said = self._text[self._sent :].lstrip()
            self._sent = self._start = len(self._text) - len(said)
            self._fresh = not said
            self._forget()
        return super()._tell(finish)

    def _forget(self) -> None:
        """Leave out the tokens that end before the answer begins."""
        ends = [start for start, _ in self._pending[1:]] + [len(self._text)]
        self._pending = [
            pair for pair, end in zip(self._pending, ends, strict=True) if end > self._start
        ]


@dataclass
class _TagGrammar:
    tags: ReasoningTags
    place: Place
    inner: Grammar | None
    budget: int | None
    ends: frozenset[int]
    # it is not one schema that holds all of the answer
    schema: str = ""

    def begin(self) -> Constraint:
        """The state at the start of an answer."""
        return TagConstraint(self)


class TagConstraint:
    """Leaves a thought free, ends it in time, and holds the answer behind it to a grammar."""

    def __init__(self, held_: _TagGrammar) -> None:
        self._tags, self._place = held_.tags, held_.place
        self._inner = held_.inner.begin() if held_.inner else None
        self._left = held_.budget
        self._ends = torch.tensor(sorted(held_.ends))
        self._opening = self._tags.ids(self._tags.opening)
        self._closing = self._tags.closing.encode()
        self._said = b""
        self._forced: list[int] = []
        if self._place == "inside":
            self._spend(0)

    def allow(self, logits: torch.Tensor) -> None:
        """Set the logits (1, vocabulary) of forbidden tokens to -inf, in place."""
        if self._forced:
            only(logits, [self._forced[0]])
        elif self._inner and self._place == "behind":
            self._inner.allow(logits)
        elif self._inner and self._place == "before":
            # held to JSON, a model that would say neither must not be driven into a thought
            if int(logits.argmax()) == self._opening[0]:
                only(logits, self._opening[:1])
            else:
                self._inner.allow(logits)
        elif self._inner:
            logits[0, self._ends.to(logits.device)] = float("-inf")
            self._forbid_beyond(logits)

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        if self._place == "behind":
            if self._inner:
                self._inner.advance(token)
            return
        if self._forced:
            self._forced.pop(0)
        mark = self._tags.marks.get(token)
        self._said += mark.encode() if mark else self._tags.token_bytes.of(token) or b""
        if self._place == "before":
            self._opens(token)
        elif self._closing in self._said:
            self._place, self._forced = "behind", []
        else:
            self._said = self._said[-_TAIL:]
            self._spend(1)

    def _opens(self, token: int) -> None:
        opening, said = self._tags.opening.encode(), self._said.lstrip()
        if said.startswith(opening):
            self._place, self._said = "inside", b""
            self._spend(0)
        elif self._inner and token == self._opening[0]:
            self._forced = self._opening[1:]
        elif not opening.startswith(said):
            self._place = "behind"
            if self._inner:
                self._inner.advance(token)

    def _spend(self, tokens: int) -> None:
        if self._left is None:
            return
        self._left -= tokens
        late = self._left <= -LONGEST
        if self._left <= 0 and not self._forced and (late or whole(self._said)):
            self._forced = self._tags.ids(self._tags.closing)

    def _forbid_beyond(self, logits: torch.Tensor) -> None:
        """Forbid tokens that hold the end of the tag and the beginning of the answer."""
        lengths = range(len(self._closing) - 1, 0, -1)
        begun = next((n for n in lengths if self._said.endswith(self._closing[:n])), 0)
        rest = self._closing[begun:]
        for token, said in self._tags.beyond if begun else ():
            if said.startswith(rest):
                logits[0, token] = float("-inf")


def only(logits: torch.Tensor, tokens: Sequence[int]) -> None:
    """Forbid all tokens but some, in place."""
    kept = logits[0, list(tokens)].clone()
    logits.fill_(float("-inf"))
    logits[0, list(tokens)] = kept
