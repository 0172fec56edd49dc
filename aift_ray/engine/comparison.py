"""What a run that compares answers keeps beside its steps: references, KL, and what it measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from aift_ray.data.collate import MicroBatch, collate
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.metrics import ACCURACY
from aift_ray.engine.objectives import Judged, Objective
from aift_ray.engine.precision import Precision
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel

# chosen and rejected answers, their rewards and log-probabilities, pairs or labels told rightly
_MEASURES = 7


@dataclass
class Comparison:
    """The rows of one set, as an objective compares them.

    Attributes:
        reference: log-probabilities of the rows by the reference model, (rows,); NaN where they
            are not known yet; zeros where the objective has no reference.
        sums: what was measured since it was last cleared, (measures,), of this worker's rows.
        kl: (), how far the model is from its reference, as last estimated.
        shared: the prompt of a pair is computed once for both answers.
    """

    objective: Objective
    rows: TokenRows
    reference: np.ndarray
    padded: bool
    pad_id: int
    precision: Precision
    group: Group
    sums: torch.Tensor
    kl: torch.Tensor
    shared: bool = False

    @classmethod
    def of(
        cls,
        objective: Objective,
        rows: TokenRows,
        padded: bool,
        pad_id: int,
        precision: Precision,
        group: Group,
        shared: bool = False,
    ) -> Comparison:
        """Of which nothing is known yet."""
        start = np.nan if objective.referenced else 0.0
        reference = np.full(len(rows), start, np.float32)
        sums = torch.zeros(_MEASURES, dtype=torch.float64, device=group.device)
        kl = torch.zeros((), device=group.device)
        laid = (reference, padded, pad_id, precision, group, sums, kl, shared)
        return cls(objective, rows, *laid)

    def batch(self, indices: Sequence[int], bare: bool = False) -> MicroBatch:
        """The tensors of some rows, on this worker's device."""
        reference = self.reference.astype(np.float32)
        how = (self.padded, self.pad_id)
        pairs = [number // 2 for number in range(len(indices))] if self.shared else None
        made = collate(self.rows, indices, *how, reference=reference, groups=pairs)
        moved = made.to(self.group.device)
        assert moved.compared
        each = 1 if self.objective.labelled else 2
        told = replace(moved.compared, kl=self.kl, sums=self.sums, bare=bare, each=each)
        return replace(moved, compared=told)

    def parts(self, indices: Sequence[int]) -> list[list[int]]:
        """The rows that are computed at once: with a label, answers and mismatched ones apart."""
        if not self.objective.labelled:
            return [list(indices)]
        return [list(indices[::2]), list(indices[1::2])]

    def trained(self, indices: Sequence[int]) -> list[int]:
        """The rows whose answers are compared, among those of a micro-batch."""
        return self.parts(indices)[0]

    def log_probabilities(self, module: LossModel, indices: Sequence[int]) -> torch.Tensor:
        """Summed log-probabilities of the answers of rows, (rows,); on a worker that counts."""
        with torch.no_grad(), self.precision.autocast(self.group.device):
            return module(self.batch(indices, bare=True))

    def measures(self, sums: Sequence[float]) -> dict[str, float | None]:
        """What was measured, under TRL's names: means over the answers of all workers.

        Args:
            sums: `sums` of all workers.
        """
        return _means(self.objective, sums, float(self.kl))

    def estimate_kl(
        self, module: LossModel, micro_batches: Iterable[tuple[Sequence[int], bool]]
    ) -> None:
        """Estimate how far the model is from its reference, over the rows of all workers.

        Args:
            micro_batches: this worker's rows, and whether they count; as many on each worker.
        """
        if not self.objective.labelled:
            return
        total, count = 0.0, 0
        was = module.training
        module.eval()
        for indices, counts in micro_batches:
            _, mismatched = self.parts(indices)
            found = self.log_probabilities(module, mismatched)
            if counts:
                reference = float(self.reference[mismatched].astype(np.float64).sum())
                total += float(found.double().sum()) - reference
                count += len(mismatched)
        module.train(was)
        total, number = self.group.total(total, count)
        self.kl.fill_(max(0.0, total / max(number, 1)))


def compare(objective: Objective, logps: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """The summed loss of the comparisons of a batch, (); what is measured is added to its sums.

    Args:
        logps: (documents,), log-probabilities of the answers, or their scores.
    """
    told = batch.compared
    assert told is not None
    assert told.kl is not None
    shape = (-1,) if objective.labelled else (-1, 2)
    device = logps.device
    judged = Judged(
        logps=logps.reshape(shape),
        reference=told.reference.to(device).reshape(shape),
        lengths=told.lengths.to(device).reshape(shape),
        scores=told.scores.to(device).reshape(shape),
        kl=told.kl.to(device),
    )
    if told.sums is not None:
        told.sums.add_(_measured(objective, judged).to(told.sums.device))
    losses = objective.losses(judged)
    if told.sets is not None and told.set_losses is not None:
        sums, sets = told.set_losses, told.sets[:: told.each]
        sums.index_add_(0, sets.to(sums.device), losses.detach().double().to(sums.device))
    return losses.sum()


@torch.no_grad()
def _measured(objective: Objective, judged: Judged) -> torch.Tensor:
    rewards, logps = objective.rewards(judged).double(), judged.logps.double()
    if objective.labelled:
        good = judged.scores > 0
        sides = [good, ~good]
        apart = torch.where(good, 1.0, -1.0) * (judged.gained - judged.kl)
    else:
        first = torch.tensor([True, False], device=logps.device).expand(logps.shape)
        sides = [first, ~first]
        apart = rewards[:, 0] - rewards[:, 1]
    # of two equal answers one is as good as the other
    right = (apart > 0).double().sum() + 0.5 * (apart == 0).double().sum()
    each = [s.double().sum() for s in sides]
    each += [(values * side).sum() for values in (rewards, logps) for side in sides]
    return torch.stack([*each, right])


def _means(objective: Objective, sums: Sequence[float], kl: float) -> dict[str, float | None]:
    chosen, rejected, reward, worse, logp, other, right = sums
    number = chosen + rejected if objective.labelled else chosen

    def mean(total: float, count: float) -> float | None:
        return total / count if count else None

    rewards = mean(reward, chosen), mean(worse, rejected)
    found = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": None
        if rewards[0] is None or rewards[1] is None
        else rewards[0] - rewards[1],
        ACCURACY: mean(right, number),
    }
    if not objective.scored:
        found |= {"logps/chosen": mean(logp, chosen), "logps/rejected": mean(other, rejected)}
    if objective.labelled:
        found["kl"] = kl
    elif objective.referenced:
        found["kl"] = mean((reward + worse) / objective.beta, chosen + rejected)
    return found
