"""Which of the requests that wait are read next."""

from __future__ import annotations

from collections.abc import Sequence

from aift_ray.serving.engines.transformers.scheduler import PIECE, Scheduler
from aift_ray.serving.engines.transformers.token_stream import TokenStream


def read_together(
    waiting: Sequence[TokenStream], batch: Scheduler, limit: int, busy: bool
) -> list[TokenStream]:
    """The first that waits, and those most like it in length that fit a piece with it.

    Prompts are read side by side, so that what a shorter one lacks is computed as well.

    Args:
        waiting: in their order, as many as there are slots for.
        limit: tokens whose keys and values may be held, padding included.
        busy: others are worked on; where none are, the first comes in whatever it needs.
    """
    found: list[TokenStream] = []
    longest, lengths = 0, list[int]()
    new = [batch.new_tokens(stream.tokens, stream.request.adapter) for stream in waiting]
    pairs = zip(new, waiting, strict=True)
    for tokens, stream in sorted(pairs, key=lambda pair: abs(pair[0] - new[0])):
        longest = max(longest, tokens)
        if found and longest * (len(found) + 1) > PIECE:
            break
        lengths.append(len(stream.tokens))
        if (busy or found) and batch.tokens_with(*lengths) > limit:
            break
        found.append(stream)
    return found
