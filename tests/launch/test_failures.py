"""One worker that can go no further does not leave the others waiting, and is not tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from aift_ray.errors import ConfigError, Problem, TrainingError
from aift_ray.launch import failures, output, workers
from aift_ray.launch.prepare import prepare
from aift_ray.parallel.group import Group
from tests.conftest import make_tiny_model
from tests.engine.runs import free_port

Configure = Callable[..., Any]
FULL = TrainingError("the longest micro-batch does not fit")


def lost(failures_: dict[int, BaseException]) -> WorkerGroupError:
    """As Ray tells it."""
    wrapped = {rank: UserExceptionWithTraceback(e, "traceback") for rank, e in failures_.items()}
    return WorkerGroupError("workers failed", wrapped)


def test_what_a_second_attempt_would_not_mend_is_not_tried_again() -> None:
    policy = failures.Policy(FailureConfig(max_failures=3))
    collateral = RuntimeError("Connection closed by peer")
    assert policy.make_decision(lost({0: collateral})) is FailureDecision.RETRY
    assert policy.make_decision(lost({0: collateral, 1: FULL})) is FailureDecision.RAISE


def test_what_a_worker_said_is_told_whole(configure: Configure, tmp_path: Path) -> None:
    job = prepare(configure(), tmp_path, 1, False, None).job
    told = workers._explained(lost({0: RuntimeError("closed"), 1: FULL}), job)
    assert isinstance(told, TrainingError)
    assert str(told) == str(FULL)
    mistake = ConfigError([Problem("training.x", "is wrong")])
    assert workers._explained(lost({1: mistake}), job).exit_status == 2


def test_it_is_no_cause_of_a_restart(tmp_path: Path) -> None:
    kept = failures.Causes(tmp_path / "causes")
    kept.after_exception(None, lost({1: FULL}).worker_failures)
    assert not (tmp_path / "causes").exists()
    kept.after_exception(None, {1: RuntimeError("closed")})
    assert workers.read_failures(tmp_path / "causes") == ["worker 1: RuntimeError: closed"]


def _leave(rank: int, folder: str, port: int, both: bool) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    group, failures.PATIENCE = Group(rank, 2, torch.device("cpu")), 3.0
    began = time.monotonic()
    if rank == 0 and not both:
        # as one that waits for hidden states
        time.sleep(5)
    else:
        try:
            result = f"returned {failures.returned(FULL, group)}"
        except TrainingError as error:
            result = f"raised {error}"
        (Path(folder) / f"{rank}").write_text(f"{time.monotonic() - began:.1f} {result}", "utf-8")
    # worker 0 keeps the store
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.slow
def test_a_worker_ends_in_its_own_time_only_if_all_do(both: bool, tmp_path: Path) -> None:
    mp.spawn(_leave, (str(tmp_path), free_port(), both), 2)
    seconds, result = (tmp_path / "1").read_text("utf-8").split(" ", 1)
    assert result == f"{'returned' if both else 'raised'} {FULL}"
    assert (float(seconds) < 2.5) == both


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_without_memory_ends_the_whole_pipeline_at_once(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(settings: dict[str, Any]) -> Any:
        import ray.train
        import torch

        from aift_ray.engine import loop
        from aift_ray.launch import failures, workers

        def full(*arguments: Any, **more: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        failures.PATIENCE = 5.0
        if ray.train.get_context().get_world_rank() == 1:
            loop.backward = full
        return workers._work(settings)

    monkeypatch.setattr(workers, "_work", failing)
    config = configure(
        model=str(make_tiny_model(tmp_path / "deep", num_hidden_layers=4)),
        output_dir=str(tmp_path / "run"),
        parallel__strategy="pipeline",
        parallel__pipeline_parallel_size=2,
        training__batch_size=2,
        ray__num_workers=2,
    )
    folder = tmp_path / "run"
    output.start(config, folder)
    job = prepare(config, folder, 2, False, None).job
    with workers.cluster():
        began = time.monotonic()
        with pytest.raises(TrainingError, match="does not fit into the memory"):
            workers.train(job, (2, 2), False, lambda: None)
    # gloo alone would wait for half an hour, and Ray would try four times
    assert time.monotonic() - began < 120
    assert workers.causes(folder) == []
