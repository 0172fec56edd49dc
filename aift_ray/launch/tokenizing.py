"""Tokenizing on all CPUs of a Ray cluster, in order and in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import Any

import ray

from aift_ray.data.encoding import Encodings, encode_here
from aift_ray.data.examples import Example, Fault
from aift_ray.data.prompts import PromptEncoder

# examples that an actor gets at once
_BATCH = 512


class _Tokenizer:
    """Holds the encoder, so that each process gets it once."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder

    def encode(self, items: list[Example | Fault]) -> list[Any]:
        return list(encode_here(self.encoder, items))


def encode_on_cluster(encoder: PromptEncoder, items: Iterator[Example | Fault]) -> Encodings:
    """As `encode_here`, by an actor a free CPU; two batches an actor are under way at a time.

    Without Ray, in a dry run or where the caller trains by itself, this process does it. It always
    does the first batch, of which `encoder` keeps what the user is to be warned of.
    """
    yield from encode_here(encoder, islice(items, _BATCH) if ray.is_initialized() else items)
    first = next(items, None)
    if first is None:
        return
    items = chain([first], items)
    number = max(1, int(ray.available_resources().get("CPU", 1)))
    kind: Any = ray.remote(_Tokenizer)
    shared = ray.put(encoder)
    actors = [kind.options(num_cpus=1).remote(shared) for _ in range(number)]
    turn = cycle(actors)
    under_way: deque[Any] = deque()
    while batch := list(islice(items, _BATCH)):
        under_way.append(next(turn).encode.remote(batch))
        if len(under_way) == 2 * number:
            yield from ray.get(under_way.popleft())
    while under_way:
        yield from ray.get(under_way.popleft())
    for actor in actors:
        ray.kill(actor)
