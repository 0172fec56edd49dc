"""Keys and values of earlier requests, for prompts that begin as those did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aift_ray.serving.rows import RowsCache, States

# fewer tokens are computed as fast as they are found
LEAST = 16
# requests that are kept: each prompt is held against all of them
MOST = 128


@dataclass(eq=False)
class Prefix:
    """What one request left.

    Attributes:
        content: digest of the adapter that the keys and values were computed with.
        tokens: of prompt and answer.
        states: keys and values by layer.
        bytes: that the states take.
    """

    content: str
    tokens: list[int]
    states: States
    bytes: int


class Prefixes:
    """The latest requests, as many as the memory holds, at most MOST.

    Args:
        memory: bytes on the model's device; 0: nothing is kept.

    Attributes:
        reused_tokens: of prompts, so far, that did not have to be computed.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.reused_tokens = 0
        # the one that was used last stands last
        self._kept: list[Prefix] = []

    def find(self, content: str, prompt: Sequence[int]) -> tuple[Prefix | None, int]:
        """What begins like a prompt for the longest time, and for how many tokens.

        The prompt's last token is never counted: it has to be computed for what follows it.
        """
        best, most, known = None, LEAST - 1, prompt[:-1]
        for prefix in self._kept:
            if prefix.content == content and (same := _alike(prefix.tokens, known)) > most:
                best, most = prefix, same
        return (best, most) if best else (None, 0)

    def use(self, prefix: Prefix, tokens: int) -> None:
        """Count so many tokens of one as reused; it stays longer than the others."""
        self.reused_tokens += tokens
        self._kept.remove(prefix)
        self._kept.append(prefix)

    def keep(self, content: str, tokens: list[int], cache: RowsCache, row: int) -> None:
        """Keep the keys and values of a row whose last columns belong to these tokens."""
        if not self.memory or len(tokens) < LEAST:
            return
        for prefix in self._kept:
            if prefix.content == content and prefix.tokens[: len(tokens)] == tokens:
                self.use(prefix, 0)
                return
        states = cache.row(row, len(tokens))
        size = sum(each.nbytes for pair in states.values() for each in pair)
        if size > self.memory:
            return
        self._kept = [
            prefix
            for prefix in self._kept
            if prefix.content != content or prefix.tokens != tokens[: len(prefix.tokens)]
        ]
        self._kept.append(Prefix(content, tokens, states, size))
        while len(self._kept) > MOST or sum(each.bytes for each in self._kept) > self.memory:
            del self._kept[0]

    def clear(self) -> None:
        """Forget everything."""
        self._kept = []


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    # slices are compared much faster than items
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
