"""What a micro-batch holds beside tokens where generated completions are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class PolicyTargets:
    """What a micro-batch holds beside tokens where generated completions are trained.

    Attributes:
        lengths: (documents,), tokens of each completion.
        advantages: (targets,).
        weights: (targets,), of each token in the loss of the step; 0: it is not trained.
        engine: (targets,), log-probabilities by the engine that generated.
        old: (targets,), by the model that the completions are of; None: by the model as it is.
        reference: (targets,), by the reference model; None: there is none.
        share: of the micro-batch in the step.
        sums: (measures,), to which what is measured is added, in double precision.
        bare: the log-probabilities are asked for, instead of a loss.
    """

    lengths: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    engine: torch.Tensor
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    share: float = 0.0
    sums: torch.Tensor | None = None
    bare: bool = False

    def none(self) -> PolicyTargets:
        """The same of no completion."""
        names = ("lengths", "advantages", "weights", "engine", "old", "reference")
        found = {name: getattr(self, name) for name in names}
        cut: dict[str, Any] = {n: v if v is None else v[:0] for n, v in found.items()}
        return replace(self, **cut, share=0.0)
