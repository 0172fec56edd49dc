"""What a run that generates keeps beside its steps: rollouts, references, and what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aift_ray.data.collate import MicroBatch, collate, rounded
from aift_ray.data.policy_targets import PolicyTargets
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo import policy_loss
from aift_ray.engine.grpo.advantages import token_advantages
from aift_ray.engine.grpo.completion_source import Policy, gathered
from aift_ray.engine.grpo.rollout import Rollout, joined
from aift_ray.engine.grpo.rollout_engine import Weights, trained_weights
from aift_ray.engine.grpo.rollout_maker import RolloutMaker
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.precision import ROUNDED
from aift_ray.models.lora.attach import without_adapters
from aift_ray.parallel.protocol import LossModel

# what checkpoints call the completions that the next step trains, and the generation after them
_PRESENT, _AHEAD = "rollout", "generation_ahead"


@dataclass
class _Ahead:
    """A generation that is made while the one before it is trained.

    Attributes:
        weights: that it is made with; on other workers than 0 none.
        rollout: waits for it, every worker must call it; None: it was not begun.
    """

    number: int
    weights: Weights
    rollout: Callable[[], Rollout] | None = None


class Rollouts:
    """Makes the rollout of each step when it is due, and the batches of its completions.

    Args:
        rows: the prompts.
        layout: whether rows are padded, by which token, and whether the completions of a prompt
            share it.
        reference: another model that log-probabilities are held against; None: the trained one
            without its adapters.
        kept: what the checkpoint that the run goes on from has, see `saved`.

    Attributes:
        sums: what was measured since it was last cleared, (measures,), of this worker's rows.
    """

    def __init__(
        self,
        maker: RolloutMaker,
        plan: RolloutPlan,
        rows: TokenRows,
        layout: tuple[bool, int, bool],
        reference: LossModel | None,
        kept: dict[str, Any],
        total_steps: int,
    ) -> None:
        self._maker, self._plan, self._prompts = maker, plan, rows
        self._padded, self._pad_id, self._shared = layout
        self._reference = reference
        self._rollout = Rollout.restored(kept[_PRESENT]) if _PRESENT in kept else None
        if self._rollout:
            plan.take(self._rollout)
        self._ahead = _Ahead(**kept[_AHEAD]) if _AHEAD in kept else None
        self._total_steps = total_steps
        self._step, self._weights = 0, np.zeros(0)
        self._training_s = 0.0
        self.sums = torch.zeros(
            policy_loss.MEASURES, dtype=torch.float64, device=maker.group.device
        )

    @property
    def rollout(self) -> Rollout:
        """The present one."""
        assert self._rollout is not None
        return self._rollout

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the rows of the present rollout."""
        return self.rollout.lengths

    def place(self, index: int) -> str:
        """Where the prompt of a completion came from."""
        return self._prompts.place(int(self.rollout.prompts[index]))

    def begin(self, module: LossModel, step: int) -> None:
        """Have the completions of a step (from 0) in place; every worker must call this."""
        number, self._step = self._plan.number(step), step
        self._begin_ahead()
        fresh = self._rollout is None or self._rollout.number != number
        if fresh:
            self._rollout = self._made(module, number)
        self._training_s = time.perf_counter()
        if fresh:
            self._plan.take(self.rollout)
            self._judge(module, step)
        self._weights = self._token_weights(step)
        self.sums.zero_()

    def _made(self, module: LossModel, number: int) -> Rollout:
        """A generation, made ahead or now; with `asynchronous` the next one is begun."""
        began, how, ahead = time.perf_counter(), self._maker.how, self._ahead
        if ahead and ahead.rollout and ahead.number == number:
            made = ahead.rollout()
        else:
            made = self._begun(module, number)()
        self._ahead = None
        if how.asynchronous:
            made.measures["time/waiting_s"] = time.perf_counter() - began
            leads = self._maker.group.is_main_process
            self._ahead = _Ahead(number + 1, trained_weights(module.model, leads))
            self._begin_ahead()
        return made

    def _begin_ahead(self) -> None:
        """Start the generation after the present one, where the run will train it."""
        ahead = self._ahead if self._maker.how.asynchronous else None
        if ahead and not ahead.rollout and ahead.number * self._plan.each < self._total_steps:
            ahead.rollout = self._begun(ahead.weights, ahead.number)

    def _begun(self, policy: Policy, number: int) -> Callable[[], Rollout]:
        plan = self._plan
        asked, progress = plan.asked(number), plan.progress(number * plan.each, self._total_steps)
        return self._maker.begin(policy, self._prompts, number, asked, plan.indices, progress)

    def saved(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps keeps.

        A generation that was begun ahead is not waited for: it is made again, with its weights.
        """
        found: dict[str, Any] = {}
        if self._rollout is not None and self._plan.number(step) == self._rollout.number:
            found[_PRESENT] = self._rollout.saved()
        if self._ahead is not None:
            found[_AHEAD] = {"number": self._ahead.number, "weights": self._ahead.weights}
        return found

    def close(self) -> None:
        """End the processes that compute rewards, and those that generate."""
        self._maker.close()

    def batch(self, indices: Sequence[int], bare: bool = False) -> MicroBatch:
        """The tensors of some completions, on this worker's device."""
        rollout, order = self.rollout, list(indices)
        groups = rollout.prompts[order].tolist() if self._shared else None
        made = collate(rollout, order, self._padded, self._pad_id, groups=groups)
        if self._shared and self._maker.precision.compiles_by_shape(self._maker.group.device):
            made = rounded(made, ROUNDED, self._pad_id)
        lengths = rollout.targets[order].astype(np.int64)
        spread = np.repeat(np.arange(len(order)), lengths)
        weights = np.zeros(len(order)) if bare else self._weights[order]
        advantages = [np.zeros(each) for each in lengths] if bare else rollout.advantages
        numbers = range(len(order)) if bare else order
        told = PolicyTargets(
            lengths=torch.from_numpy(lengths),
            advantages=joined(advantages, numbers),
            weights=_floats(weights[spread]),
            engine=joined(rollout.engine, order),
            old=joined(rollout.old, order) if rollout.old else None,
            reference=joined(rollout.reference, order) if rollout.reference else None,
            share=len(order) / len(self._plan.completions(self._step)),
            sums=self.sums,
            bare=bare,
        )
        return replace(made, policy=told).to(self._maker.group.device)

    def longest_batch(self) -> MicroBatch:
        """A micro-batch at least as long as any that will come, of tokens without meaning."""
        asked = self._plan.longest_micro_batch()
        more = self._maker.how.max_completion_length
        ids = [self._prompts.row(row)[0] for row in asked]
        starts = np.array([len(each) for each in ids])
        whole = [np.concatenate([each, np.full(more, each[-1])]).astype(np.int32) for each in ids]
        zeros, logps = np.zeros(len(ids)), [np.zeros(more, np.float32)] * len(ids)
        held = self._rollout
        self._rollout = Rollout(
            -1, np.array(asked), whole, starts, zeros > 0, logps, zeros, zeros, []
        )
        if self._maker.how.beta:
            self._rollout.reference = logps
        self._weights = zeros
        numbers = list(range(len(ids)))
        found = self._batch_alone(numbers)
        self._rollout = held
        return found

    def _batch_alone(self, numbers: list[int]) -> MicroBatch:
        rollout = self.rollout
        made = collate(rollout, numbers, self._padded, self._pad_id)
        lengths = torch.from_numpy(rollout.targets.astype(np.int64))
        zeros = torch.zeros(int(lengths.sum()))
        told = PolicyTargets(lengths, zeros, zeros, zeros, reference=zeros)
        return replace(made, policy=told).to(self._maker.group.device)

    def measures(self, sums: Sequence[float]) -> dict[str, float | None]:
        """What was measured in the step, and in its generation where it is the first of it.

        Args:
            sums: `sums` of all workers.
        """
        found = policy_loss.measures(self._maker.how, sums)
        first = self._step % self._plan.each == 0
        seconds = {"time/training_s": time.perf_counter() - self._training_s}
        return (self.rollout.measures if first else {}) | found | seconds

    def _token_weights(self, step: int) -> np.ndarray:
        """The weight of each token of each completion in the loss of a step, (completions,)."""
        how, rollout = self._maker.how, self.rollout
        lengths = rollout.targets.astype(np.float64)
        kept = ~rollout.truncated if how.mask_truncated_completions else np.ones(len(lengths), bool)
        numbers = self._plan.completions(step)
        if how.loss_type in ("grpo", "gspo", "rloo"):
            found = 1 / (len(numbers) * lengths)
        elif how.loss_type == "dr_grpo":
            found = np.full(len(lengths), 1 / (len(numbers) * how.max_completion_length))
        else:
            counted = np.arange(len(lengths)) if how.loss_type == "dapo" else np.array(numbers)
            parts = self._plan.parts if how.loss_type == "dapo" else 1
            total = (lengths * kept)[counted].sum() / parts
            found = np.full(len(lengths), 1 / max(total, 1.0))
        weights: np.ndarray = found * kept
        return weights

    def _judge(self, module: LossModel, step: int) -> None:
        """Log-probabilities of the rollout by model and reference, and its advantages."""
        rollout, how = self.rollout, self._maker.how
        if self._plan.each > 1 or how.penalizes_rewards:
            rollout.old = self._log_probabilities(module, step)
        if how.beta and self._reference is not None:
            rollout.reference = self._log_probabilities(self._reference, step)
        elif how.beta:
            with without_adapters(module.model):
                rollout.reference = self._log_probabilities(module, step)
        kl = None
        if how.penalizes_rewards:
            pairs = zip(rollout.old, rollout.reference, strict=True)
            kl = [old - reference for old, reference in pairs]
        lengths = rollout.targets.tolist()
        rollout.advantages = token_advantages(how, rollout.rewards, lengths, kl)

    @torch.no_grad()
    def _log_probabilities(self, module: LossModel, step: int) -> list[np.ndarray]:
        """Of the tokens of every completion; each worker computes its share, and gets all.

        Rows are computed in the micro-batches that train them, so that the ratio of a model to
        itself is 1 to the bit. A worker without rows computes some for those who need it.
        """
        group, mine = self._maker.group, dict[int, np.ndarray]()
        was = module.training
        module.eval()
        for part in range(self._plan.parts):
            for indices in self._plan.share(step + part, group.dp_rank, group.dp_size):
                with self._maker.precision.autocast(group.device):
                    found = module(self.batch(indices or [0], bare=True)).float().cpu().numpy()
                if not indices:
                    continue
                ends = np.cumsum(self.rollout.targets[indices])[:-1]
                mine |= dict(zip(indices, np.split(found, ends), strict=True))
        module.train(was)
        whole = {at: each for theirs in gathered(group, mine) for at, each in theirs.items()}
        return [whole[at] for at in range(len(self.rollout))]


def _floats(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
