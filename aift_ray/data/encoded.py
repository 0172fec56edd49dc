"""What an Example becomes: token ids, and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row.

    Attributes:
        ids: token ids, without padding.
        supervised: as long as `ids`; True where the token is a training target, that is the
            answer of each assistant turn with its end-of-turn token, or all of a plain text.
    """

    ids: list[int]
    supervised: list[bool]

    def __len__(self) -> int:
        return len(self.ids)
