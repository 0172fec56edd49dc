"""Which parts of a conversation are training targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aift_ray.config import DataConfig


@dataclass(frozen=True, slots=True)
class Supervision:
    """What is trained of a conversation; the fields are the settings `data.train_*`.

    Attributes:
        turns: all answers, or the last one of a row.
        thoughts: all: trained as a part of the answer; masked: shown before the answer and not
            trained; none: left out of the rows.
        end: the token that ends a turn is trained at the end of each trained answer (turn), of
            every message (all), or nowhere (none).
        rewritten: what becomes of a row with an answer that the template writes otherwise once
            it is history: split (one row an answer), error (a wrong row), or keep (trained as
            the history shows it).
    """

    turns: Literal["all", "last"] = "all"
    thoughts: Literal["all", "masked", "none"] = "all"
    end: Literal["turn", "all", "none"] = "turn"
    rewritten: Literal["split", "error", "keep"] = "split"

    @classmethod
    def of(cls, config: DataConfig) -> Supervision:
        """As the settings of a run have it."""
        return cls(
            config.train_turns, config.train_thoughts, config.train_end, config.on_rewritten_turn
        )


# every answer, with its thought and the end of its turn
ANSWERS = Supervision()
