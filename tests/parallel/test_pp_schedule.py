"""The order of a pipeline's passes: whole, without a deadlock, with no bubble more than needed."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed.pipelining.schedules import ScheduleGPipe, ScheduleInterleaved1F1B

from aift_ray.parallel.pp_schedule import Action, order

SCHEDULES = ("gpipe", "1f1b", "interleaved")
WORKERS = (2, 3, 4, 8)


def stages_of(schedule: str, workers: int) -> int:
    return workers * (2 if schedule == "interleaved" else 1)


def needed(action: Action, stages: int) -> list[Action]:
    """What must be done before an action."""
    before = []
    if not action.forward:
        before.append(action._replace(forward=True))
    stage = action.stage + (-1 if action.forward else 1)
    if 0 <= stage < stages:
        before.append(action._replace(stage=stage))
    return before


def rounds(schedule: str, workers: int, micros: int) -> int:
    """Time until all is done, where each pass takes one unit and a message none."""
    orders = [order(schedule, workers, worker, micros) for worker in range(workers)]
    stages, done, at, time = stages_of(schedule, workers), set(), [0] * workers, 0
    while any(place < len(queue) for place, queue in zip(at, orders, strict=True)):
        ready = [
            worker
            for worker, queue in enumerate(orders)
            if at[worker] < len(queue)
            and all(other in done for other in needed(queue[at[worker]], stages))
        ]
        assert ready, "all wait for each other"
        done |= {orders[worker][at[worker]] for worker in ready}
        for worker in ready:
            at[worker] += 1
        time += 1
    return time


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("workers", WORKERS)
def test_every_pass_is_done_once_and_nobody_waits_for_ever(schedule: str, workers: int) -> None:
    for micros in range(1, 25):
        passes = [a for w in range(workers) for a in order(schedule, workers, w, micros)]
        assert len(passes) == len(set(passes)) == 2 * micros * stages_of(schedule, workers)
        rounds(schedule, workers, micros)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_bubble_is_that_of_the_formula(workers: int) -> None:
    for micros in (workers, 2 * workers, 4 * workers):
        wasted = 2 * (workers - 1)
        assert rounds("gpipe", workers, micros) == 2 * micros + wasted
        assert rounds("1f1b", workers, micros) == 2 * micros + wasted
        # a pass of half as many blocks takes half the time: half the bubble
        assert rounds("interleaved", workers, micros) == 4 * micros + wasted


@pytest.mark.parametrize("workers", WORKERS)
def test_few_micro_batches_are_in_flight_with_1f1b(workers: int) -> None:
    for worker in range(workers):
        flight, most = 0, 0
        for action in order("1f1b", workers, worker, 16):
            flight += 1 if action.forward else -1
            most = max(most, flight)
        assert most == workers - worker


def torch_order(kind: Any, workers: int, micros: int) -> list[list[tuple[bool, int, int]]]:
    """The passes of each worker as torch.distributed.pipelining orders them."""
    made = object.__new__(kind)
    made._num_stages = made.pp_group_size = workers
    made._n_microbatches, made.n_local_stages = micros, 2
    made.number_of_rounds = max(1, micros // workers)
    made.microbatches_per_round = micros // made.number_of_rounds
    if kind is ScheduleInterleaved1F1B:
        found = [made._calculate_single_rank_operations(worker) for worker in range(workers)]
    else:
        found = list(made._get_pipeline_order().values())
    kinds = {"FORWARD": True, "FULL_BACKWARD": False}
    return [
        [
            (kinds[one.computation_type.name], one.stage_index, one.microbatch_index)
            for one in queue
            if one is not None and one.computation_type.name in kinds
        ]
        for queue in found
    ]


@pytest.mark.parametrize(
    ("schedule", "kind"), [("gpipe", ScheduleGPipe), ("interleaved", ScheduleInterleaved1F1B)]
)
def test_the_order_is_that_of_torch(schedule: str, kind: Any) -> None:
    for workers in (2, 4):
        for micros in (workers, 3 * workers):
            wanted = torch_order(kind, workers, micros)
            for worker in range(workers):
                found = [tuple(a) for a in order(schedule, workers, worker, micros)]
                assert found == wanted[worker]
