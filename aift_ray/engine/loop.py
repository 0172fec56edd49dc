"""The training loop. It knows nothing of methods, strategies or Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from enum import IntEnum
from functools import partial
from typing import Any

import torch

from aift_ray.data.collate import MicroBatch
from aift_ray.engine import optimizer
from aift_ray.engine.comparison import Comparison
from aift_ray.engine.device_memory import out_of_memory
from aift_ray.engine.lr_scheduler import learning_rate
from aift_ray.engine.optimizer import set_rate
from aift_ray.engine.set_losses import by_set
from aift_ray.engine.step_batches import make_next, micro_batch, step_batches
from aift_ray.engine.worker_run import Run
from aift_ray.errors import RewardError, TrainingError
from aift_ray.models.decoder import causal_model
from aift_ray.models.recomputation import offloaded_activations
from aift_ray.parallel.protocol import MicroBatches


class StopRequest(IntEnum):
    """What somebody outside wants of the run."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    # as if this were the last step
    END = 3


class LoopHooks:
    """What the loop tells the world, and asks it; every worker calls each method alike."""

    def __init__(
        self,
        on_step: Callable[[dict[str, Any]], None],
        stop_request: Callable[[], StopRequest],
        save: Callable[[StopRequest], None],
        evaluate: Callable[[], bool],
        score: Callable[[], None],
    ) -> None:
        self.on_step, self.stop_request, self.save = on_step, stop_request, save
        self.evaluate, self.score = evaluate, score


def train(run: Run, hooks: LoopHooks) -> str:
    """Step until the end; returns done, stopped early or interrupted, as `status`.

    Raises:
        RewardError: no completions of the next step; the steps before it are saved.
    """
    training, state = run.config.training, run.state
    saved = state.step
    while state.step < run.total_steps:
        try:
            line, asked = train_step(run, hooks.stop_request())
        except RewardError:
            # every worker gets it before the step has changed anything
            if state.step != saved:
                hooks.save(StopRequest.SAVE)
            raise
        state.step += 1
        hooks.on_step(line)
        last = state.step == run.total_steps or asked is StopRequest.END
        ended_early = False
        if run.evaluator and (last or state.step % training.eval_steps == 0):
            ended_early = hooks.evaluate()
        if run.tasks and not last and run.tasks.due(state.step):
            hooks.score()
        if last or asked or ended_early or state.step % training.save_steps == 0:
            hooks.save(asked)
            saved = state.step
        if ended_early or (asked is StopRequest.END and state.step < run.total_steps):
            return "stopped early"
        if asked is StopRequest.STOP and not last:
            return "interrupted"
    return "done"


def train_step(
    run: Run, asked: StopRequest = StopRequest.NOTHING
) -> tuple[dict[str, Any], StopRequest]:
    """One optimizer step; its line for the metrics, and what worker 0 was asked.

    Raises:
        TrainingError: the loss or the gradient is not finite, once more than may be skipped; the
            weights are untouched.
    """
    began, step, group = time.perf_counter(), run.state.step, run.group
    if run.rollouts is not None:
        run.rollouts.begin(run.module, step)
    shares = run.plan.share(step, group.dp_rank, group.dp_size)
    targets, weight = run.plan.step_targets(step), run.plan.step_weight(step)
    rate = learning_rate(run.config.training, step, run.total_steps)
    set_rate(run.optimizer, rate)
    model, routers = run.parallel_model, run.module.routers
    if routers:
        # a trial may have left something
        routers.taken()
    if run.set_losses is not None:
        run.set_losses.zero_()
    if run.comparison is not None:
        _begin(run, run.comparison, shares)
    summed = backward(run, step_batches(run, shares), weight).double() / max(weight, 1)
    lengths = (run.rollouts or run.rows).lengths
    tokens = sum(int(lengths[indices].sum()) for indices in shares if indices)
    balanced = routers.taken() / max(weight, 1) if routers else 0.0
    measuring = run.rollouts or run.comparison
    measured = [] if measuring is None else list(measuring.sums)
    mine = (summed, tokens, balanced, *measured)
    mine = mine if group.is_last_mp_rank else (0.0,) * len(mine)
    joined = group.joined(*mine, asked if group.is_main_process else 0)
    norm_before = model.clip_gradients(run.config.training.max_grad_norm)
    make_next(run)
    # the only time in a step that the device is waited for
    numbers = torch.cat([joined, norm_before.to(joined).reshape(1)]).tolist()
    loss, all_tokens, balance, *sums, heard, norm = numbers
    finite = math.isfinite(loss) and (math.isfinite(norm) or run.scaler.is_enabled())
    note = {} if finite else {"skipped": _skip(run, loss, norm)}
    if finite:
        model.step()
    model.zero_grad()
    seconds = time.perf_counter() - began
    return note | {
        "step": step + 1,
        "epoch": round(run.plan.epoch(step + 1), 6),
        "loss": loss if finite else None,
        **by_set(run, step),
        **(measuring.measures(sums) if measuring and finite else {}),
        **({"aux_loss": balance if finite else None} if routers else {}),
        "learning_rate": rate,
        "grad_norm": norm if finite else None,
        "tokens": int(all_tokens),
        "supervised_tokens": targets,
        "tokens_per_second": all_tokens / seconds,
        "world_size": group.world_size,
        "time": time.time(),
    }, StopRequest(int(heard))


def _begin(run: Run, comparison: Comparison, shares: list[list[int]]) -> None:
    """Measure anew, and estimate the KL that the step is taken with."""
    comparison.sums.zero_()
    other = run.plan.share(run.state.step, 0, 1)[0]
    comparison.estimate_kl(run.module, [(share or other, bool(share)) for share in shares])


def backward(run: Run, batches: list[MicroBatch], targets: int) -> torch.Tensor:
    """Gradients of micro-batches over `targets`; their summed loss, or this worker's part of it.

    The loss of a step is the sum over supervised tokens divided by their number in the whole
    global batch; where answers are compared, over comparisons and by their number.
    """
    context = partial(_forward_context, run)
    step = MicroBatches(batches, max(targets, 1), partial(seed_step, run), context)
    return run.parallel_model.backward(step)


def _forward_context(run: Run) -> AbstractContextManager[object]:
    """The precision of a forward pass, and where its activations are kept."""
    contexts = ExitStack()
    contexts.enter_context(run.precision.autocast(run.group.device))
    if run.config.training.activation_offloading:
        numbers = causal_model(run.module.model).config.get_text_config()
        contexts.enter_context(offloaded_activations(numbers.hidden_size))
    return contexts


def trial(run: Run) -> None:
    """Try the longest micro-batch where it can show something: a CPU's memory has no end that is
    told, and it would cost the time of a step.

    Raises:
        TrainingError: it does not fit into the device's memory; with what would.
    """
    if run.group.device.type != "cpu":
        try_longest(run)


def try_longest(run: Run) -> None:
    """Forward and backward of the longest micro-batch that can come, beside the optimizer's
    moments, without a step.

    Raises:
        TrainingError: it does not fit into the device's memory; with what would.
    """
    try:
        # the first step would make them, when the trial has gone well
        optimizer.allocate(run.optimizer)
        batch = longest_batch(run)
        # of a model that several workers hold, what is in flight at once counts
        shares = run.plan.share(0, run.group.dp_rank, run.group.dp_size)
        backward(run, [batch] * (len(shares) if run.group.model_parallel_size > 1 else 1), 1)
    except torch.OutOfMemoryError as error:
        raise TrainingError(out_of_memory(run, error)) from error
    run.parallel_model.zero_grad()


def longest_batch(run: Run) -> MicroBatch:
    """A micro-batch at least as long as any that will come."""
    if run.rollouts is not None:
        return run.rollouts.longest_batch()
    return micro_batch(run, run.plan.longest_micro_batch())


def seed_step(run: Run, micro: int) -> None:
    """Make the random numbers of a micro-step a function of seed, step, replica and micro-step.

    Workers that divide a row have numbers of their own.
    """
    numbers = (run.config.training.seed, run.state.step, run.group.random_rank, micro)
    torch.manual_seed(hash(numbers) & (2**63 - 1))


def _skip(run: Run, loss: float, norm: float) -> str:
    """Why a batch is left out; an error when too many were."""
    if run.state.skipped >= run.config.training.skip_nonfinite:
        raise TrainingError(_not_finite(run, loss, norm))
    run.state.skipped += 1
    return _not_finite(run, loss, norm)


def _not_finite(run: Run, loss: float, norm: float) -> str:
    rows = [i for part in run.plan.share(run.state.step, 0, 1) for i in part]
    places = ", ".join((run.rollouts or run.rows).place(i) for i in rows[:8])
    return (
        f"step {run.state.step + 1}: loss {loss}, gradient norm {norm}; the weights were not "
        f"changed by it. Rows of the batch: {places}{' ...' if len(rows) > 8 else ''}. "
        "Lower the learning rate, or look at these rows."
    )
