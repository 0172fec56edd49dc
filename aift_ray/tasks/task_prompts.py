"""Items to token ids: what stands before an answer, and what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder

_UNLIMITED = 2**31


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence of which the tokens from `start` on are scored.

    Attributes:
        ids: at least one token stands before `start`.
    """

    ids: tuple[int, ...]
    start: int


class ItemEncoder:
    """Token ids for one model.

    Plain prompts are encoded as lm-evaluation-harness does: prompt and continuation together,
    blanks at the end of the prompt as part of the continuation, and split where the prompt alone
    would end. Chats are encoded as training and serving encode them.

    Args:
        context: tokens that the model takes, of which longer sequences keep the last; None: any
            number.

    Attributes:
        truncated: sequences so far that lost their beginning.
    """

    def __init__(self, prompts: PromptEncoder, context: int | None) -> None:
        self._prompts = prompts
        self._tokenizer: Any = prompts.tokenizer
        self._context = context or _UNLIMITED
        self.truncated = 0
        whole = self._tokenizer.encode("a")
        plain = self._tokenizer.encode("a", add_special_tokens=False)
        self._prefix: list[int] = (
            whole[: len(whole) - len(plain)] if len(whole) > len(plain) else []
        )
        bos = self._tokenizer.bos_token_id
        # what an empty prompt is taken as
        self._start = [self._tokenizer.eos_token_id if bos is None else bos]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return frozenset(self._prompts.stop_ids)

    def choices(
        self, prompt: str | Example, choices: Sequence[str], delimiter: str
    ) -> list[ScoredSequence]:
        """A sequence for each choice."""
        if isinstance(prompt, Example):
            before = self._prompts.prompt_ids(prompt)
            return [self._fit(before, self._plain(choice)) for choice in choices]
        return [self._fit(*self._pair(prompt, delimiter + choice)) for choice in choices]

    def unconditional(self, choices: Sequence[str], delimiter: str) -> list[ScoredSequence]:
        """The choices without a prompt."""
        found = []
        for choice in choices:
            ids = self._plain(delimiter + choice)
            found.append(self._fit(self._prefix or self._start, ids))
        return found

    def prompt(self, prompt: str | Example, room: int) -> list[int]:
        """The ids before an answer of `room` tokens at most."""
        ids = (
            self._prompts.prompt_ids(prompt)
            if isinstance(prompt, Example)
            else self._encode(prompt) or self._start
        )
        longest = max(1, self._context - room)
        if len(ids) > longest:
            self.truncated += 1
        return ids[-longest:]

    def windows(self, text: str) -> list[ScoredSequence]:
        """A text in pieces that fit the context; each token is scored once.

        After the first piece one token of the piece before stands in front, as in the rolling
        likelihood of lm-evaluation-harness.
        """
        ids = self._start + self._plain(text)
        size = self._context
        return [
            ScoredSequence(tuple(ids[at : at + size + 1]), 1) for at in range(0, len(ids) - 1, size)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _pair(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        if not prompt:
            return self._start, self._plain(continuation)
        stripped = prompt.rstrip()
        continuation = prompt[len(stripped) :] + continuation
        if not stripped:
            return self._start, self._plain(continuation)
        before = self._encode(stripped)
        whole = self._encode(stripped + continuation)
        return whole[: len(before)], whole[len(before) :]

    def _encode(self, text: str) -> list[int]:
        """With what the tokenizer puts before a text."""
        bos = self._tokenizer.bos_token
        special = not (bos and text.startswith(bos))
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _fit(self, before: Sequence[int], after: Sequence[int]) -> ScoredSequence:
        # the last token is only scored, never read
        beyond = len(before) + len(after) - (self._context + 1)
        if beyond > 0:
            self.truncated += 1
            before = before[min(beyond, len(before) - 1) :]
        return ScoredSequence((*before, *after), len(before))
