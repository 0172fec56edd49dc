"""The micro-batches of a step; on a GPU they are made while it still computes the step before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import torch

from aift_ray.data.collate import MicroBatch, collate
from aift_ray.data.context_share import own_share
from aift_ray.engine.set_losses import of_comparisons
from aift_ray.engine.worker_run import Run


def step_batches(run: Run, shares: list[list[int]]) -> list[MicroBatch]:
    """The micro-batches of this worker's rows `shares` of the step that the run is at."""
    ahead, run.ahead = run.ahead, None
    if ahead is None or ahead[0] != run.state.step:
        return _made(run, shares, run.state.step)
    device = run.group.device
    if device.type == "cuda":
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(_copying(device))
        for tensor in _tensors(ahead[1]):
            # of the other stream, which must not reuse the memory before this one is done
            tensor.record_stream(computing)
    return ahead[1]


def make_next(run: Run) -> None:
    """Collate, pin and send the next step's micro-batches while the device computes this step.

    The rows of a step are a function of its number, so nothing depends on when they are collated.
    A CPU computes nothing while this process collates. Completions are not generated yet.
    """
    following = run.state.step + 1
    if run.rollouts is not None or following >= run.total_steps:
        return
    if not computes_apart(run.group.device):
        return
    shares = run.plan.share(following, run.group.dp_rank, run.group.dp_size)
    cuda = run.group.device.type == "cuda"
    with torch.cuda.stream(_copying(run.group.device)) if cuda else nullcontext():
        run.ahead = following, _made(run, shares, following)


def computes_apart(device: torch.device) -> bool:
    """Whether a device computes while this process does something else."""
    return device.type == "cuda"


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream in which batches are sent beside the computation."""
    return torch.cuda.Stream(device)


def _tensors(batches: list[MicroBatch]) -> Iterator[torch.Tensor]:
    for batch in batches:
        for part in (batch, batch.compared, batch.policy):
            values = vars(part).values() if part is not None else ()
            yield from (value for value in values if isinstance(value, torch.Tensor))
        if batch.context is not None:
            yield from batch.context.tensors()


def _made(run: Run, shares: list[list[int]], step: int) -> list[MicroBatch]:
    """A micro-batch of each share; of one without rows, a batch that trains nothing."""
    found = []
    for indices in shares:
        batch = micro_batch(run, indices or shares[0] or run.plan.share(step, 0, 1)[0])
        found.append(batch if indices else without_targets(batch))
    return found


def micro_batch(run: Run, indices: list[int]) -> MicroBatch:
    """The tensors of some rows, on this worker's device."""
    if run.rollouts is not None:
        return run.rollouts.batch(indices)
    if run.comparison is not None:
        compared = run.comparison.trained(indices)
        made = run.comparison.batch(compared)
        if run.set_of is None:
            return made
        return of_comparisons(made, run.set_of[compared], run.set_losses)
    batch = collate(run.rows, indices, run.job.padded, run.job.stop_ids[0], run.set_of)
    group, pad_id = run.group, run.job.stop_ids[0]
    batch = own_share(batch, group.context_rank, group.context_parallel_size, pad_id)
    moved = batch.to(group.device)
    return moved if run.set_of is None else replace(moved, set_losses=run.set_losses)


def without_targets(batch: MicroBatch) -> MicroBatch:
    """A batch that trains nothing: a worker without rows still joins the reduction."""
    return MicroBatch(
        batch.input_ids,
        batch.position_ids,
        batch.attention_mask,
        batch.cu_seqlens,
        batch.label_positions[:0],
        batch.labels[:0],
        batch.max_seqlen,
        places=batch.places,
        own=batch.own,
        compared=batch.compared and batch.compared.none(),
        policy=batch.policy and batch.policy.none(),
        context=batch.context,
    )
