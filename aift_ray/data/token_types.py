"""What an Example becomes: token ids, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row.

    Attributes:
        ids: token ids, without padding.
        supervised: as long as `ids`; True where the token is a training target, that is the
            answer of each assistant turn with its end-of-turn token, or all of a plain text.
    """

    ids: Sequence[int]
    supervised: Sequence[bool]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """What a row of a data file becomes.

    Attributes:
        pieces: one, or several where each answer of a conversation needs its own.
        split: the row was cut into one piece an answer.
        not_shown: keys of the row of which nothing stands in the pieces.
        digests: those of `duplicates`, where the process that encoded the row has taken them.
    """

    pieces: list[Encoded]
    split: bool = False
    not_shown: tuple[str, ...] = ()
    digests: tuple[bytes, bytes] | None = None
