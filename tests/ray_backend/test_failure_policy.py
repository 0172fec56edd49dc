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
from ray.exceptions import ActorDiedError, NodeDiedError, WorkerCrashedError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from aift_ray.engine import loop, metrics
from aift_ray.engine.run_errors import is_worker_loss
from aift_ray.engine.worker import work
from aift_ray.errors import ConfigError, Problem, TrainingError, WorkersLost
from aift_ray.parallel.group import Group
from aift_ray.ray_backend import cluster, failure_policy, ray_trainer
from aift_ray.runs import restart_causes, run_dir
from aift_ray.runs.prepare import prepare
from tests.conftest import make_tiny_model
from tests.helpers.runs import free_port

Configure = Callable[..., Any]
FULL = TrainingError("the longest micro-batch does not fit")


def lost(failures_: dict[int, BaseException]) -> WorkerGroupError:
    """As Ray tells it."""
    wrapped = {rank: UserExceptionWithTraceback(e, "traceback") for rank, e in failures_.items()}
    return WorkerGroupError("workers failed", wrapped)


def test_what_a_second_attempt_would_not_mend_is_not_tried_again() -> None:
    policy = failure_policy.Policy(FailureConfig(max_failures=3))
    collateral = RuntimeError("Connection closed by peer")
    assert policy.make_decision(lost({0: collateral})) is FailureDecision.RETRY
    assert policy.make_decision(lost({0: collateral, 1: FULL})) is FailureDecision.RAISE


LEFT_BEHIND: list[BaseException] = [
    # as gloo says it, whose errors have no type of their own
    RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3786"),
    RuntimeError("[gloo/transport/tcp/pair.cc:144] Read error: Connection reset by peer"),
    RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
    dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
    dist.DistNetworkError("The client socket has failed to connect"),
    dist.DistStoreError("wait timeout"),
    ConnectionResetError(104, "Connection reset by peer"),
    ActorDiedError(),
    WorkerCrashedError(),
    NodeDiedError("the machine is gone"),
]
OF_CODE: list[BaseException] = [
    IndexError("index out of range in self"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x4)"),
    RuntimeError("op.preamble.length <= op.nbytes. 8 vs 4"),
    TypeError("forward() got an unexpected keyword argument 'x'"),
    KeyError("layers"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
]


@pytest.mark.parametrize("error", LEFT_BEHIND, ids=lambda error: type(error).__name__)
def test_what_a_lost_worker_leaves_behind_is_tried_again(error: BaseException) -> None:
    assert is_worker_loss(error)
    policy = failure_policy.Policy(FailureConfig(max_failures=1))
    assert policy.make_decision(lost({0: error})) is FailureDecision.RETRY
    # what else a worker met once another was lost, whatever it is
    wrapped = RuntimeError("the loader ended")
    wrapped.__cause__ = error
    assert is_worker_loss(wrapped)


@pytest.mark.parametrize("error", OF_CODE, ids=lambda error: type(error).__name__)
def test_an_error_of_the_code_is_not_tried_again(
    error: BaseException, configure: Configure, tmp_path: Path
) -> None:
    policy = failure_policy.Policy(FailureConfig(max_failures=3))
    collateral = RuntimeError("Connection closed by peer")
    assert policy.make_decision(lost({1: error})) is FailureDecision.RAISE
    assert policy.make_decision(lost({0: collateral, 1: error})) is FailureDecision.RAISE
    assert policy.make_decision(lost({0: ActorDiedError(), 1: error})) is FailureDecision.RETRY
    job = prepare(configure(), tmp_path, 1, False, None).job
    told = ray_trainer._explained(lost({1: error}), job)
    assert isinstance(told, TrainingError)
    assert not isinstance(told, WorkersLost)
    assert type(error).__name__ in str(told)


@pytest.mark.parametrize("when", ["built", "trained", "evaluated"])
def test_an_error_of_the_code_says_where_it_was(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def broken(*arguments: Any, **more: Any) -> Any:
        raise IndexError("index out of range in self")

    def half_way(run: Any, asked: Any) -> Any:
        return real(run, asked) if run.state.step < 1 else broken()

    real = loop.train_step
    name = {
        "built": "aift_ray.engine.build.built_model",
        "trained": "aift_ray.engine.loop.train_step",
    }
    target = name.get(when, "aift_ray.engine.validate.Validator.loss")
    monkeypatch.setattr(target, half_way if when == "trained" else broken)
    config = configure(data__validation_fraction=0.2, training__eval_steps=1)
    job = prepare(config, tmp_path / "run", 1, False, None).job
    (tmp_path / "run").mkdir()
    place = {"built": "building the model", "trained": "step 2"}.get(when, "step 1")
    with pytest.raises(TrainingError, match=f"{place}: IndexError: index out of range") as told:
        work(job, Group.alone())
    assert "(test_failure_policy.py:" in str(told.value)
    log = (tmp_path / "run" / "error.log").read_text("utf-8")
    assert "Traceback" in log
    assert "in broken" in log


def test_memory_that_runs_out_after_the_trial_says_what_would_fit(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "train_step", full)
    job = prepare(configure(), tmp_path / "run", 1, False, None).job
    (tmp_path / "run").mkdir()
    with pytest.raises(TrainingError, match="step 1 does not fit into the memory of cpu") as told:
        work(job, Group.alone())
    for part in ("weights", "activations", "try ", "Tried to allocate 2.00 GiB"):
        assert part in str(told.value)


def test_memory_that_runs_out_while_the_model_is_built_names_who_may_hold_it(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("aift_ray.engine.build.built_model", full)
    job = prepare(configure(), tmp_path / "run", 1, False, None).job
    (tmp_path / "run").mkdir()
    wanted = "building the model does not fit into the memory of cpu"
    with pytest.raises(TrainingError, match=wanted) as told:
        work(job, Group.alone())
    for part in ("nvidia-smi", "--parallel.gpu_memory 16GB", "Tried to allocate 2.00 GiB"):
        assert part in str(told.value)


def test_what_a_worker_said_is_told_whole(configure: Configure, tmp_path: Path) -> None:
    job = prepare(configure(), tmp_path, 1, False, None).job
    closed = RuntimeError("Connection closed by peer")
    told = ray_trainer._explained(lost({0: closed, 1: FULL}), job)
    assert isinstance(told, TrainingError)
    assert str(told) == str(FULL)
    mistake = ConfigError([Problem("training.x", "is wrong")])
    assert ray_trainer._explained(lost({1: mistake}), job).exit_status == 2


def test_it_is_no_cause_of_a_restart(tmp_path: Path) -> None:
    kept = failure_policy.Causes(tmp_path / "causes")
    kept.after_exception(None, lost({1: FULL}).worker_failures)
    assert not (tmp_path / "causes").exists()
    kept.after_exception(None, {1: RuntimeError("Connection closed by peer")})
    told = restart_causes.read_failures(tmp_path / "causes")
    assert told == ["worker 1: RuntimeError: Connection closed by peer"]


def _leave(rank: int, folder: str, port: int, both: bool) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    group, failure_policy.PATIENCE = Group(rank, 2, torch.device("cpu")), 3.0
    began = time.monotonic()
    if rank == 0 and not both:
        # as one that waits for hidden states
        time.sleep(5)
    else:
        try:
            result = f"returned {failure_policy.returned(FULL, group)}"
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
        from aift_ray.ray_backend import failure_policy, ray_trainer

        def full(*arguments: Any, **more: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        failure_policy.PATIENCE = 5.0
        if ray.train.get_context().get_world_rank() == 1:
            loop.backward = full
        return ray_trainer._work(settings)

    monkeypatch.setattr(ray_trainer, "_work", failing)
    config = configure(
        model=str(make_tiny_model(tmp_path / "deep", num_hidden_layers=4)),
        output_dir=str(tmp_path / "run"),
        parallel__strategy="pipeline",
        parallel__pipeline_parallel_size=2,
        training__batch_size=2,
        ray__num_workers=2,
    )
    folder = tmp_path / "run"
    run_dir.start(config, folder)
    job = prepare(config, folder, 2, False, None).job
    with cluster.cluster():
        began = time.monotonic()
        with pytest.raises(TrainingError, match="does not fit into the memory"):
            ray_trainer.train(job, (2, 2), False, lambda: None)
    # gloo alone would wait for half an hour, and Ray would try four times
    assert time.monotonic() - began < 120
    assert restart_causes.read_failures(folder / restart_causes.FAILURES) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("failing_ranks", [(1,), (0, 1)])
def test_an_error_of_the_code_ends_the_run_at_once(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing_ranks: tuple[int, ...],
) -> None:
    def failing(settings: dict[str, Any]) -> Any:
        import ray.train

        from aift_ray.engine import loop
        from aift_ray.ray_backend import failure_policy, ray_trainer

        real = loop.backward

        def broken(run: Any, *arguments: Any) -> Any:
            if run.state.step == 1:
                raise IndexError("index out of range in self")
            return real(run, *arguments)

        failure_policy.PATIENCE = 3.0
        if ray.train.get_context().get_world_rank() in failing_ranks:
            loop.backward = broken
        return ray_trainer._work(settings)

    monkeypatch.setattr(ray_trainer, "_work", failing)
    folder = tmp_path / "run"
    config = configure(output_dir=str(folder), training__batch_size=4, ray__num_workers=2)
    run_dir.start(config, folder)
    job = prepare(config, folder, 2, False, None).job
    with cluster.cluster():
        began = time.monotonic()
        with pytest.raises(TrainingError, match="step 2: IndexError: index out of range") as told:
            ray_trainer.train(job, (2, 2), False, lambda: None)
    assert time.monotonic() - began < 100
    assert not isinstance(told.value, WorkersLost)
    assert restart_causes.read_failures(folder / restart_causes.FAILURES) == []
    # one attempt: a second one would have made the same step again
    assert [line["step"] for line in metrics.read(folder / "metrics.jsonl")] == [1]
