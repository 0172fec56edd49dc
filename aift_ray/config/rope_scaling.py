"""How the rotary position embeddings of a model are scaled, in words: `yarn:4`."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """transformers' `rope_type` and `factor`."""

    kind: str
    factor: float

    @classmethod
    def parse(cls, text: str) -> RopeScaling:
        """The scaling of KIND:FACTOR; ValueError says what is allowed."""
        kind, _, number = text.partition(":")
        if kind == "dynamic":
            raise ValueError(
                "dynamic is not possible: its frequencies depend on the longest text of a batch, so"
                " a row would be trained otherwise than it is served; use yarn"
            )
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if kind not in KINDS or not 1 < factor < math.inf:
            allowed = ", ".join(KINDS)
            raise ValueError(f"give KIND:FACTOR, KIND of {allowed}, FACTOR above 1, such as yarn:4")
        return cls(kind, factor)

    def __str__(self) -> str:
        return f"{self.kind}:{self.factor:g}"
