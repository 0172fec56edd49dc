"""Keys and values of earlier requests, for prompts that begin as those did."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aift_ray.serving.engines.transformers.kv_cache import Pair, States

log = logging.getLogger(__name__)

# fewer tokens are computed as fast as they are found
LEAST = 16
# requests that are kept: each prompt is held against all of them
MOST = 128


class PrefixCache:
    """Keys and values of tokens, a slot each, in memory that is taken once and for all.

    Pieces of their own that come and go with requests of all lengths leave holes in a process's
    heap, as many again as they hold.

    Args:
        memory: bytes on the model's device.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        # keys and values by layer, (slots, heads, size)
        self._layers: dict[int, Pair] = {}
        self._slots = self._fresh = 0
        # those that held something; from the fresh one on none has yet
        self._free: list[int] = []

    def room(self, states: States) -> int:
        """How many tokens with such states can be kept at all."""
        if not self._layers:
            token = sum(each[:, 0].nbytes for pair in states.values() for each in pair)
            self._slots = self.memory // token
            self._layers = {number: self._empty(pair) for number, pair in states.items()}
        return self._slots

    @property
    def free(self) -> int:
        """How many more tokens can be kept now."""
        return len(self._free) + self._slots - self._fresh

    def put(self, states: States) -> torch.Tensor:
        """Keep copies; the slots they are in, one a token."""
        count = next(iter(states.values()))[0].shape[1]
        taken = self._free[-count:]
        del self._free[-count:]
        end = self._fresh + count - len(taken)
        slots = torch.tensor([*taken, *range(self._fresh, end)])
        self._fresh = end
        for number, pair in states.items():
            for kept, new in zip(self._layers[number], pair, strict=True):
                kept.index_copy_(0, slots.to(kept.device), new.transpose(0, 1))
        return slots

    def get(self, slots: torch.Tensor) -> States:
        """Copies of what is in slots."""
        return {
            number: (_taken(keys, slots), _taken(values, slots))
            for number, (keys, values) in self._layers.items()
        }

    def drop(self, slots: torch.Tensor) -> None:
        """Free slots."""
        self._free += slots.tolist()

    def _empty(self, like: Pair) -> Pair:
        keys, values = (each.new_empty(self._slots, each.shape[0], each.shape[2]) for each in like)
        return keys, values


@dataclass(eq=False)
class Prefix:
    """What one request left.

    Attributes:
        content: digest of the adapter that the keys and values were computed with.
        tokens: of prompt and answer.
        slots: where their keys and values are.
    """

    content: str
    tokens: list[int]
    slots: torch.Tensor


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
        self._store = PrefixCache(memory)
        # the one that was used last stands last
        self._kept: list[Prefix] = []

    def find(self, content: str, prompt: Sequence[int]) -> tuple[Prefix | None, int]:
        """The longest cached prefix of a prompt, and its length in tokens.

        The prompt's last token is never counted: it has to be computed for what follows it.
        """
        best, most, known = None, LEAST - 1, prompt[:-1]
        for prefix in self._kept:
            if prefix.content == content and (same := _alike(prefix.tokens, known)) > most:
                best, most = prefix, same
        return (best, most) if best else (None, 0)

    def use(self, prefix: Prefix, tokens: int) -> States:
        """The first tokens of one, which are reused; it stays longer than the others."""
        self.reused_tokens += tokens
        self._renew(prefix)
        return self._store.get(prefix.slots[:tokens])

    def keep(self, content: str, tokens: list[int], states: States) -> None:
        """Keep the keys and values of these tokens."""
        if not LEAST <= len(tokens) <= self._room(states):
            return
        for prefix in self._kept:
            if prefix.content == content and prefix.tokens[: len(tokens)] == tokens:
                self._renew(prefix)
                return
        for prefix in [*self._kept]:
            if prefix.content == content and prefix.tokens == tokens[: len(prefix.tokens)]:
                self._drop(prefix)
        while len(self._kept) >= MOST or self._store.free < len(tokens):
            self._drop(self._kept[0])
        self._kept.append(Prefix(content, tokens, self._store.put(states)))

    def _room(self, states: States) -> int:
        try:
            return self._store.room(states)
        except RuntimeError as error:
            # a server whose device is full answers all the same
            log.warning("serving.prefix_memory is not to be had, nothing is kept: %s", error)
            self.memory = 0
            self.clear()
            return 0

    def _renew(self, prefix: Prefix) -> None:
        self._kept.remove(prefix)
        self._kept.append(prefix)

    def _drop(self, prefix: Prefix) -> None:
        self._kept.remove(prefix)
        self._store.drop(prefix.slots)

    def clear(self) -> None:
        """Forget everything, and give the memory back."""
        self._kept, self._store = [], PrefixCache(self.memory)


def _taken(states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """(heads, tokens, size)."""
    return states.index_select(0, slots.to(states.device)).transpose(0, 1)


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
