"""Log-probabilities of answers by the reference model: computed once, before the first step.

They are kept beside the token cache, under the content of what they depend on, so that a run that
goes on, another epoch and the next trial of a sweep find them. With adapters the reference is the
model without them; else it is built, used, and given back before the model that is trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aift_ray.config import LoRAConfig, RunConfig
from aift_ray.config.preference_config import answers_of
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.comparison import Comparison
from aift_ray.engine.job import Job
from aift_ray.engine.objectives import Objective
from aift_ray.engine.precision import Precision
from aift_ray.models import hub
from aift_ray.models.families.router_loss import balances
from aift_ray.models.fingerprint import fingerprint
from aift_ray.models.lora.attach import without_adapters
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel

# seconds of work that a lost worker may cost, at most
_KEPT_EVERY = 30.0
# the rows of a global batch, and this worker's micro-batches of them
Work = Iterable[tuple[list[int], list[list[int]]]]


def within(config: RunConfig) -> bool:
    """Whether the model that is trained holds its reference: adapters that can be left out."""
    lora = config.lora
    plain = lora.init_from is None and lora.init_lora_weights == "default" and lora.bias == "none"
    return config.method != "full" and plain and config.preference.reference is None


def as_reference(config: RunConfig) -> RunConfig:
    """The configuration that another model is built by, where it is only asked."""
    if config.preference.reference is None:
        return config
    kept = LoRAConfig(use_qlora=config.lora.use_qlora, qlora_4bit=config.lora.qlora_4bit)
    return config.model_copy(update={"lora": kept})


def shares_prompts(job: Job) -> bool:
    """Whether the prompt of a pair, or of a group of completions, is computed once for all.

    Not where rows are padded, where attention is compiled, and where tokens have a loss of their
    own by how routers spread them.
    """
    config = job.config
    groups = config.objective == "grpo" or answers_of(config.objective) == "pair"
    if job.padded or config.training.compile or not groups:
        return False
    return config.method != "full" or not balances(hub.load_config(job.location))


def of_steps(plan: BatchPlan, steps: range, replica: int, replicas: int) -> Work:
    """The rows of the steps that are left, each micro-batch as it will be trained.

    So the model's own log-probabilities are those of the reference to the bit, as long as it is
    the same model.
    """
    for step in steps:
        units = [int(plan.indices[row]) for unit in plan.global_units(step) for row in unit]
        yield units, plan.share(step, replica, replicas)


class References:
    """What the rows of a run are held against, for training and for evaluation.

    Args:
        plan, steps: which rows make the steps that are left.
        tested: the rows to evaluate on, and their indices.

    Attributes:
        train, tested: the comparisons; `tested` is None without rows to evaluate on.
    """

    def __init__(
        self,
        objective: Objective,
        job: Job,
        group: Group,
        precision: Precision,
        plan: BatchPlan,
        steps: range,
        rows: TokenRows,
        tested: tuple[TokenRows, np.ndarray],
    ) -> None:
        how = (job.padded, job.stop_ids[0], precision, group, shares_prompts(job))
        own, indices = tested
        self._config = job.config
        self.train = Comparison.of(objective, rows, *how)
        self.tested = Comparison.of(objective, own, *how) if len(indices) else None
        replica, replicas, size = group.dp_rank, group.dp_size, job.config.micro_batch
        # a whole epoch among them, which holds all rows
        steps = steps[: 2 * plan.steps_per_epoch]
        self._sets: list[tuple[Comparison, Callable[[], Work], Path | None]] = [
            (self.train, lambda: of_steps(plan, steps, replica, replicas), None)
        ]
        if self.tested:
            work = partial(rounds, indices, replica, replicas, size)
            self._sets.append((self.tested, work, None))
        if objective.referenced:
            named = [file_of(job, precision.name, name) for name in ("train", "eval")]
            pairs = zip(self._sets, named, strict=False)
            self._sets = [(compared, work, file) for (compared, work, _), file in pairs]
            for compared, _, file in self._sets:
                _read(compared, file)

    @property
    def missing(self) -> bool:
        """Whether some are still to be computed."""
        return any(
            np.isnan(compared.reference[rows]).any()
            for compared, work, _ in self._sets
            for rows, _ in work()
        )

    def complete(self, module: LossModel) -> None:
        """Compute those that are missing; every worker must call this.

        Args:
            module: holds the reference, or the model that is the reference without adapters.
        """
        was = module.training
        module.eval()
        with without_adapters(module.model) if within(self._config) else nullcontext():
            for compared, work, file in self._sets:
                _complete(compared, work(), module, file)
        module.train(was)


def _complete(comparison: Comparison, work: Work, module: LossModel, file: Path | None) -> None:
    group, known = comparison.group, ~np.isnan(comparison.reference)
    waiting: list[int] = []
    mine: dict[int, float] = {}
    since = time.monotonic()
    for rows, micro_batches in work:
        if known[rows].all():
            continue
        known[rows] = True
        waiting += rows
        for indices in micro_batches:
            mine |= _computed(comparison, module, indices or rows[:2], bool(indices))
        if group.agree(time.monotonic() - since > _KEPT_EVERY):
            _join(comparison, waiting, mine, file)
            waiting, mine, since = [], {}, time.monotonic()
    _join(comparison, waiting, mine, file)


def _computed(
    comparison: Comparison, module: LossModel, indices: Sequence[int], counts: bool
) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in comparison.parts(indices):
        values = comparison.log_probabilities(module, part)
        if counts and comparison.group.is_last_mp_rank:
            found |= dict(zip(part, values.tolist(), strict=True))
    return found


def _join(
    comparison: Comparison, rows: list[int], mine: dict[int, float], file: Path | None
) -> None:
    """Give each worker what all have computed, and keep it."""
    if not rows:
        return
    found = comparison.group.total(*[mine.get(row, 0.0) for row in rows])
    comparison.reference[rows] = np.array(found, np.float32)
    if file and comparison.group.is_main_process:
        # a cache that others have made may not be ours to write into
        with suppress(OSError):
            scratch = file.with_name(f".{file.name}.{os.getpid()}")
            with scratch.open("wb") as stream:
                np.save(stream, comparison.reference)
            scratch.replace(file)


def _read(comparison: Comparison, file: Path | None) -> None:
    """Take what is kept in `file`, which worker 0 reads for all."""
    found: np.ndarray | None = None
    if file and comparison.group.is_main_process:
        with suppress(OSError, ValueError):
            found = np.load(file)
    found = comparison.group.agree(found)
    if found is not None and found.shape == comparison.reference.shape:
        comparison.reference[:] = found


def file_of(job: Job, precision: str, rows: str) -> Path | None:
    """Where the log-probabilities of rows are kept; None: what they depend on is not known.

    Args:
        rows: train or eval.
    """
    config = job.config
    try:
        weights = fingerprint(job.reference or job.location)
        start = fingerprint(config.lora.init_from) if config.lora.init_from else ""
    except (OSError, ValueError):
        return None
    if weights is None or start is None:
        return None
    # a batch of other rows would change the last digits
    laid = [config.data.packing, config.data.tokens_per_micro_batch, config.training.seed]
    laid += [config.micro_batch, job.global_batch, shares_prompts(job)]
    parts = [weights, start, config.trained_with, precision, job.support.attention, *laid]
    name = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
    return job.cache / f"reference-{name}-{rows}.npy"


def rounds(indices: np.ndarray, replica: int, replicas: int, size: int) -> Iterator[Any]:
    """The rows of an evaluation, each round of all workers, and this worker's part of it.

    Args:
        indices: (rows,), two a comparison.
        size: comparisons of a micro-batch.
    """
    units = indices.reshape(-1, 2)
    for start in range(0, -(-len(units) // replicas), size):
        whole = units[start * replicas : (start + size) * replicas]
        yield whole.flatten().tolist(), [whole[replica::replicas].flatten().tolist()]
