"""In which order a worker of a pipeline does the forward and backward passes of a step."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Action(NamedTuple):
    """One pass of one micro-batch through one stage."""

    forward: bool
    stage: int
    micro: int


def order(schedule: str, workers: int, worker: int, micros: int) -> list[Action]:
    """The passes of one worker, in an order in which no worker waits for ever for another.

    Worker w has stage w; interleaved, stages w and w + workers. The orders are those of
    torch.distributed.pipelining, for any number of micro-batches.

    Args:
        schedule: gpipe (all forward passes first), 1f1b (a backward pass as soon as there is one,
            so that few micro-batches are in flight) or interleaved.
        micros: micro-batches of the step.
    """
    chunks = 2 if schedule == "interleaved" else 1
    number = max(1, micros // workers)
    cuts = [-(-micros * n // number) for n in range(number + 1)]
    rounds = [range(start, end) for start, end in pairwise(cuts)]
    stages = [worker + chunk * workers for chunk in range(chunks)]
    if chunks == 1:
        forward = [Action(True, worker, micro) for micro in range(micros)]
        backward = [Action(False, worker, micro) for micro in range(micros)]
        ahead = micros if schedule == "gpipe" else min(micros, workers - worker - 1)
    else:
        forward = [Action(True, stage, m) for some in rounds for stage in stages for m in some]
        backward = [
            Action(False, stage, m) for some in rounds for stage in reversed(stages) for m in some
        ]
        first = len(rounds[0])
        ahead = min(len(forward), (chunks - 1) * first + 2 * (workers - worker - 1))
    found = forward[:ahead]
    for one, other in zip(forward[ahead:], backward, strict=False):
        found += [one, other]
    return found + backward[len(forward) - ahead :]
