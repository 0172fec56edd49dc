"""What a program may hear of its run while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Callback:
    """Base of callbacks: override what you want to hear; the others do nothing.

    They are called in the process that has called `train`, in the order in which things happened.
    Without Ray that is the training itself, which waits for them. With Ray workers it is this
    process while the workers train on: it hears of a step within about half a second.

    A method that returns True ends the run after the step that is then under way, as early
    stopping does: with an evaluation, a checkpoint and the final model, and `stopped_early` in
    `summary.json`. One that raises ends it with a checkpoint, and `train` raises the same error.

    Steps that are repeated because a worker was lost are told again.
    """

    def on_step(self, metrics: dict[str, Any]) -> bool | None:
        """After each step, whatever `logging_steps` says.

        Args:
            metrics: a line of `metrics.jsonl`: step (from 1), epoch, loss, learning_rate,
                grad_norm, tokens, tokens_per_second and the others.
        """

    def on_evaluate(self, metrics: dict[str, Any]) -> bool | None:
        """After each evaluation, that before the first step (step 0) too.

        Args:
            metrics: step, epoch, and what was measured: eval_loss, exact_match, and scores of
                tasks as TASK/SCORE.
        """

    def on_save(self, step: int, folder: Path) -> bool | None:
        """When a checkpoint is complete on the disk.

        Args:
            folder: `checkpoints/step-N`; older ones may be removed later.
        """
