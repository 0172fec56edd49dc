"""What a micro-batch holds beside tokens where answers are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from aift_ray.data.token_rows import TokenRows


@dataclass(frozen=True)
class Compared:
    """What a micro-batch holds beside tokens where answers are compared.

    Attributes:
        lengths: (documents,), targets a document.
        reference: (documents,), log-probabilities of the reference model; zeros without one.
        scores: (documents,), labels or margins; NaN where the row has none.
        ends: (documents,), flat positions in `ids` of the last token of each document.
        kl: (), how far the model is from its reference, where the objective asks for it.
        sums: (measures,), to which what is measured is added, in double precision.
        bare: the log-probabilities are asked for, instead of a loss.
        each: documents a comparison.
        sets: (documents,), the set of a mixture that each is of; None without a mixture.
        set_losses: (sets,), to which the losses of each set are added, in double precision.
    """

    lengths: torch.Tensor
    reference: torch.Tensor
    scores: torch.Tensor
    ends: torch.Tensor
    kl: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    bare: bool = False
    each: int = 2
    sets: torch.Tensor | None = None
    set_losses: torch.Tensor | None = None

    def none(self) -> Compared:
        """The same of no document."""
        names = ("lengths", "reference", "scores", "ends")
        parts = {name: getattr(self, name)[:0] for name in names}
        return replace(self, **parts, sets=None, set_losses=None)

    @classmethod
    def of(
        cls, rows: TokenRows, indices: list[int], reference: np.ndarray, ends: np.ndarray
    ) -> Compared:
        """Of some rows.

        Args:
            reference: log-probabilities of all rows by the reference model.
            ends: of the rows `indices`.
        """
        counts = torch.from_numpy(rows.num_label_tokens[indices].astype(np.int64))
        return cls(
            counts,
            torch.from_numpy(reference[indices]),
            torch.from_numpy(rows.scores[indices]),
            torch.from_numpy(ends.astype(np.int64)),
        )
