"""Tokenizing on all CPUs of a Ray cluster, in order and in constant memory."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import Any

from aift_ray.config import DataConfig
from aift_ray.data.duplicates import digests
from aift_ray.data.examples import Example, Fault
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.token_types import Encoded, EncodedRow
from aift_ray.data.tokenize import FIRST, Encode, Encodings, encode_here, encode_in_threads

# examples that an actor gets at once
_BATCH = 512


def encode_of(config: DataConfig) -> Encode:
    """What tokenizes by the setting `data.prepare`: threads of this process, or Ray."""
    return encode_on_cluster if config.prepare == "ray" else encode_in_threads


class _Tokenizer:
    """Holds the encoder, so that each process gets it once."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder

    def encode(self, items: list[Example | Fault]) -> list[Any]:
        return [_packed(item, found) for item, found in encode_here(self.encoder, items)]


def _packed(item: Example | Fault, found: object) -> Any:
    """What travels in place of an encoding; lists of numbers would cost more than encoding."""
    if not isinstance(found, EncodedRow) or not isinstance(item, Example):
        return found
    pieces = [(array("i", piece.ids), array("b", piece.supervised)) for piece in found.pieces]
    return pieces, found.split, found.not_shown, digests(item)


def _unpacked(found: object) -> Any:
    if not isinstance(found, tuple):
        return found
    pieces, split, not_shown, marks = found
    return EncodedRow([Encoded(*piece) for piece in pieces], split, not_shown, marks)


def encode_on_cluster(encoder: PromptEncoder, items: Iterator[Example | Fault]) -> Encodings:
    """As `encode_here`, by an actor a free CPU; two batches an actor are under way at a time.

    Without Ray, in a dry run or where the caller trains by itself, this process does it. It always
    does the first rows, of which `encoder` keeps what the user is to be warned of.
    """
    import ray

    if not ray.is_initialized():
        yield from encode_in_threads(encoder, items)
        return
    yield from encode_here(encoder, islice(items, FIRST))
    first = next(items, None)
    if first is None:
        return
    items = chain([first], items)
    number = max(1, int(ray.available_resources().get("CPU", 1)))
    kind: Any = ray.remote(_Tokenizer)
    shared = ray.put(encoder)
    actors = [kind.options(num_cpus=1).remote(shared) for _ in range(number)]
    turn = cycle(actors)
    under_way: deque[tuple[list[Example | Fault], Any]] = deque()
    while batch := list(islice(items, _BATCH)):
        under_way.append((batch, next(turn).encode.remote(batch)))
        if len(under_way) == 2 * number:
            yield from _arrived(*under_way.popleft())
    while under_way:
        yield from _arrived(*under_way.popleft())
    for actor in actors:
        ray.kill(actor)


def _arrived(batch: list[Example | Fault], encodings: object) -> Encodings:
    import ray

    for item, found in zip(batch, ray.get(encodings), strict=True):
        yield item, _unpacked(found)
