"""Where a run is: what a checkpoint tells of it, beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """Where a run is. The data position and the random numbers are functions of `step`.

    Attributes:
        step: optimizer steps done.
        global_batch: units a step, kept whatever number of workers comes back.
        best_loss, best_step: of the best evaluation so far.
        bad_evaluations: evaluations since then.
        skipped: batches left out because their loss or gradient was not finite.
        first_loss, eval_loss_before, eval_accuracy_before, exact_match_before, tasks_before: for
            the summary.
        data: name of the token cache that the run trains on.
        trained_as: method, with the bits of a quantized base; empty in older checkpoints.
        settings: of the run, by their dotted names; empty in older checkpoints.
        changes: of the settings when the run was resumed, a line each, with the step.
    """

    step: int = 0
    global_batch: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0
    skipped: int = 0
    first_loss: float | None = None
    eval_loss_before: float | None = None
    eval_accuracy_before: float | None = None
    exact_match_before: float | None = None
    tasks_before: dict[str, Any] | None = None
    data: str = ""
    trained_as: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
