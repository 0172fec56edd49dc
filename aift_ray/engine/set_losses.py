"""The loss of each set of a mixture, beside the loss that is trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.collate import MicroBatch

if TYPE_CHECKING:
    from aift_ray.engine.worker_run import Run


class SetLosses:
    """Adds the losses of a batch's sets to their sums, beside the loss of the whole."""

    def __init__(self, batch: MicroBatch) -> None:
        self._sets, self._sums = batch.sets, batch.set_losses

    def __call__(self, piece: slice, logits: torch.Tensor, targets: torch.Tensor) -> None:
        if self._sets is None or self._sums is None:
            return
        each = cross_entropy(logits.detach(), targets[piece], reduction="none").double()
        sums = self._sums
        sums.index_add_(0, self._sets[piece].to(sums.device), each.to(sums.device))


def of_comparisons(batch: MicroBatch, sets: np.ndarray, sums: torch.Tensor | None) -> MicroBatch:
    """The same batch, whose comparisons add their losses to those of their sets.

    Args:
        sets: of each document, shape (documents,).
        sums: see `Compared.set_losses`.
    """
    assert batch.compared
    # int32 in the file, int64 where torch counts by it
    each = torch.from_numpy(sets.astype(np.int64)).to(batch.input_ids.device)
    return replace(batch, compared=replace(batch.compared, sets=each, set_losses=sums))


def by_set(run: Run, step: int) -> dict[str, Any]:
    """The loss of each set of a mixture of several; None where a step held nothing of it."""
    if run.set_of is None or run.set_losses is None:
        return {}
    assert isinstance(run.plan, BatchPlan)
    # of a divided row each worker has a part
    join = run.group.sum if run.group.context_parallel_size > 1 else run.group.total
    sums = join(*run.set_losses.tolist())
    triples = zip(run.set_names, sums, run.plan.set_weights(step), strict=True)
    losses = {name: total / number if number else None for name, total, number in triples}
    finite = {n: v if v is None or math.isfinite(v) else None for n, v in losses.items()}
    return {"loss_by_set": finite}
