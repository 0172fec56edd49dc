"""Rows that are too long for a model: cut in the middle of the prompt, or in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from aift_ray.data.token_types import Encoded


def fit(encoded: Encoded, sequence_length: int) -> Encoded | None:
    """A row cut to a length, or None where the answers and two tokens of prompt don't fit.

    What follows the last answer goes first, then the middle of the longest unsupervised runs:
    heads (BOS, system) and tails (the tokens right before an answer) stay.
    """
    if len(encoded) <= sequence_length:
        return encoded
    flags = encoded.supervised
    last = max((index for index, flag in enumerate(flags) if flag), default=len(flags) - 1)
    ids, flags = encoded.ids[: last + 1], flags[: last + 1]
    runs: list[tuple[bool, int, int]] = []
    for flag, group in groupby(enumerate(flags), key=lambda pair: pair[1]):
        places = [index for index, _ in group]
        runs.append((flag, places[0], places[-1] + 1))
    lengths = [end - start for flag, start, end in runs if not flag]
    room = sequence_length - sum(flags)
    if room < min(2, sum(lengths)):
        return None
    kept = iter(_shares(lengths, room))
    places = []
    for flag, start, end in runs:
        share = end - start if flag else next(kept)
        tail = end - (share + 1) // 2
        places += [*range(start, start + share // 2), *range(tail, end)]
    return Encoded([ids[place] for place in places], [flags[place] for place in places])


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens each run keeps: the longest give first, the first keeps two if it can."""
    floors = [min(2, length) if index == 0 else 0 for index, length in enumerate(lengths)]

    def total(level: int) -> int:
        return sum(max(floor, min(n, level)) for floor, n in zip(floors, lengths, strict=True))

    low, high = 0, max(lengths, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= room else (low, middle - 1)
    shares = [max(floor, min(n, low)) for floor, n in zip(floors, lengths, strict=True)]
    # The level is whole tokens; what is left goes to the last runs, nearest the last answer.
    spare = room - sum(shares)
    for index in reversed(range(len(shares))):
        if spare > 0 and shares[index] < lengths[index]:
            shares[index] += 1
            spare -= 1
    return shares


def split_text(encoded: Encoded, sequence_length: int) -> list[Encoded]:
    """Consecutive pieces of at most `sequence_length` tokens; nothing is lost."""
    return [
        Encoded(
            encoded.ids[start : start + sequence_length],
            encoded.supervised[start : start + sequence_length],
        )
        for start in range(0, len(encoded), sequence_length)
    ]
