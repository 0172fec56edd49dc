"""Two answers to one prompt as token rows that stay together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError, Steps
from aift_ray.data.token_types import Encoded, EncodedRow

# rows with a label among which each gets the answer of another
_WINDOW = 256
Rows = Iterator[tuple[Encoded, Example]]


def pair_steps(encoder: PromptEncoder, example: Example) -> Steps:
    """As `encoder.steps`, of answers that are compared; of a pair both, the better one first.

    Raises:
        RowError: an answer can't be encoded, becomes several, or has no token to train on.
    """
    sides = [example, example.rejected] if example.rejected else [example]
    names = ("chosen", "rejected") if example.rejected else ("the answer",)
    found = []
    for each in sides:
        found.append((yield from encoder.steps(each)))
    for name, row in zip(names, found, strict=True):
        if len(row.pieces) > 1:
            what = f"{name} has {len(row.pieces)} answers, which the chat template writes otherwise"
            raise RowError(f"{what} once they are history")
        if not any(row.pieces[0].supervised[1:]):
            raise RowError(
                f"{name} has no token to train on", "write its answer, or remove the row"
            )
    pieces = [row.pieces[0] for row in found]
    if len(pieces) > 1 and pieces[0] == pieces[1]:
        raise RowError("chosen and rejected become the same tokens", "remove the row")
    keys = dict.fromkeys(key for row in found for key in row.not_shown)
    return EncodedRow(pieces, not_shown=tuple(keys))


def fit_answers(pieces: list[Encoded], length: int) -> list[Encoded] | None:
    """Answers to one prompt cut to a length; None where one and two tokens of prompt don't fit.

    What follows an answer goes first, then the middle of the prompt, the same tokens for all.
    """
    ends = [max(at for at, flag in enumerate(p.supervised) if flag) + 1 for p in pieces]
    cut = [Encoded(p.ids[:e], p.supervised[:e]) for p, e in zip(pieces, ends, strict=True)]
    first = min(piece.supervised.index(True) for piece in cut)
    kept = min(first, length - (max(map(len, cut)) - first))
    if kept < min(2, first):
        return None
    head, tail = kept // 2, first - (kept - kept // 2)
    return [
        Encoded(
            [*piece.ids[:head], *piece.ids[tail:]],
            [*piece.supervised[:head], *piece.supervised[tail:]],
        )
        for piece in cut
    ]


def with_mismatched(rows: Rows, length: int) -> Rows:
    """Rows with a label, each followed by its prompt with the answer of the row before it.

    From these KTO estimates how far the model is from its reference. The first row of a window
    gets the answer of the last one.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2.
    """
    before: Encoded | None = None
    while window := list(islice(rows, _WINDOW)):
        last = window[-1][0] if len(window) > 1 or before is None else before
        for encoded, example in window:
            yield encoded, example
            yield _with_answer(encoded, last, length), example.without_score()
            last = encoded
        before = last


def _with_answer(prompt: Encoded, answer: Encoded, length: int) -> Encoded:
    """The prompt of one row with the answer of another, at most `length` tokens."""
    first, start = prompt.supervised.index(True), answer.supervised.index(True)
    ids = [*prompt.ids[:first], *answer.ids[start:]]
    flags = [*prompt.supervised[:first], *answer.supervised[start:]]
    whole = Encoded(ids, flags)
    if len(whole) <= length:
        return whole
    fitted = fit_answers([whole], length)
    # a long prompt keeps its place before a long answer
    return fitted[0] if fitted else Encoded(ids[-length:], flags[-length:])
