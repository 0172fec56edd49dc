"""One worker's share of a run: what the loop, evaluation and checkpoints work with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from aift_ray.config import RunConfig
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.collate import MicroBatch
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.comparison import Comparison
from aift_ray.engine.grpo.rollout_evaluation import RolloutEvaluator
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.grpo.rollouts import Rollouts
from aift_ray.engine.job import Job
from aift_ray.engine.precision import Precision
from aift_ray.engine.run_state import RunState
from aift_ray.engine.task_scores import TaskEvaluator
from aift_ray.engine.validate import Validator
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, ParallelModel


@dataclass
class Run:
    """One worker's share of a run.

    Attributes:
        parallel_model: the model, spread over the workers by a strategy, with its optimizer.
        plan: which rows make which step.
        tasks: scores the model on tasks; None where there are none.
        state: where the run is.
        resumed_from: step of the checkpoint it started from.
        outline: the whole model without weights, where this worker holds a part of it and writes.
        set_of: the set that each row is of, in a mixture of several.
        set_losses: summed loss of each set in this step so far, of this worker's rows.
        comparison: the training rows, where answers are compared.
        rollouts: generated completions, where they are trained.
        ahead: the number of the next step, and its micro-batches; None: they are not made yet.
    """

    job: Job
    group: Group
    precision: Precision
    parallel_model: ParallelModel
    rows: TokenRows
    plan: BatchPlan | RolloutPlan
    evaluator: Validator | RolloutEvaluator | None
    tasks: TaskEvaluator | None
    state: RunState
    total_steps: int
    resumed_from: int | None = None
    outline: torch.nn.Module | None = None
    set_of: np.ndarray | None = None
    set_names: list[str] = field(default_factory=list)
    set_losses: torch.Tensor | None = None
    comparison: Comparison | None = None
    rollouts: Rollouts | None = None
    ahead: tuple[int, list[MicroBatch]] | None = None

    @property
    def module(self) -> LossModel:
        """The model as it is evaluated: it gives the loss of a batch, and generates."""
        return self.parallel_model.module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the model."""
        return self.parallel_model.optimizer

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """What scales the loss."""
        return self.parallel_model.scaler

    @property
    def written(self) -> torch.nn.Module:
        """The model as saved files describe it: whole, if without weights."""
        return self.outline or self.module.model

    @property
    def config(self) -> RunConfig:
        """The configuration of the run."""
        return self.job.config
