"""Rows that are encoded together: each gives up its texts, and goes on with their ids."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import islice

from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import Bordered, Grown, SafeTokenizer
from aift_ray.data.token_types import EncodedRow

# texts to be encoded, what became of them, and what the row becomes
Steps = Generator[list[Bordered], list[Grown], EncodedRow]


def finish(safe: SafeTokenizer, rows: Sequence[Steps]) -> list[EncodedRow | RowError]:
    """What rows become, in their order; the texts of all are encoded in one call."""
    found: dict[int, EncodedRow | RowError] = {}
    waiting: dict[int, list[Bordered]] = {}

    def advance(number: int, grown: list[Grown] | None) -> None:
        try:
            row = rows[number]
            waiting[number] = next(row) if grown is None else row.send(grown)
        except StopIteration as end:
            found[number] = end.value
        except RowError as error:
            found[number] = error

    for number in range(len(rows)):
        advance(number, None)
    while waiting:
        wanted, waiting = waiting, {}
        grown = iter(safe.grow_all([text for texts in wanted.values() for text in texts]))
        for number, texts in wanted.items():
            own = list(islice(grown, len(texts)))
            wrong = next((each for each in own if isinstance(each, RowError)), None)
            if wrong is None:
                advance(number, [each for each in own if isinstance(each, Grown)])
            else:
                found[number] = wrong
    return [found[number] for number in range(len(rows))]
