"""Each worker writes its own share of a file that is the same for any number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from aift_ray.config import RunConfig
from aift_ray.engine import checkpoint
from aift_ray.engine.checkpoint import tensor_files
from aift_ray.parallel.group import Group
from tests.helpers.runs import CPU, free_port, whole_on_workers, whole_run
from tests.helpers.whole_runs import losses, run, run_on
from tests.parallel.test_strategies import STEADY, _close

Configure = Callable[..., Any]


@contextmanager
def worker(rank: int, world: int) -> Iterator[None]:
    """One of several workers, none of which can hear another: whatever is gathered is wrong."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


WHOLE = {
    "even": torch.randn(8, 6),
    "uneven": torch.randn(7, 3),
    "fewer rows than workers": torch.randn(2, 5),
    "three dimensions": torch.randn(5, 4, 3),
    "vector": torch.randn(9),
    "narrow": torch.randn(6, 8).bfloat16(),
    "nobody's": torch.empty(0, 4),
}
# of each tensor of two dimensions or more: how it lies on a mesh of (2, 2)
SPREADS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "by rows": ((4,), [Shard(0)]),
    "by columns": ((4,), [Shard(1)]),
    "whole": ((4,), [Replicate()]),
    "replicas of rows": ((2, 2), [Replicate(), Shard(0)]),
    "replicas of columns": ((2, 2), [Replicate(), Shard(1)]),
    "both": ((2, 2), [Shard(0), Shard(1)]),
}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", SPREADS)
def test_shares_of_all_workers_make_the_whole_file(name: str, copy: bool, tmp_path: Path) -> None:
    sizes, placements = SPREADS[name]
    path = tmp_path / "x.safetensors"
    # in any order: nobody waits for anybody
    for rank in (2, 0, 3, 1):
        with worker(rank, 4):
            mesh = init_device_mesh("cpu", sizes)
            flat = [Shard(0) if kind.is_shard() else kind for kind in placements]
            held: dict[str, torch.Tensor] = {
                key: distribute_tensor(
                    tensor.clone(),
                    mesh,
                    placements if tensor.ndim > 1 else flat,
                    src_data_rank=None,
                )
                for key, tensor in WHOLE.items()
            }
            held["of worker 0"] = WHOLE["vector"] + rank
            written = tensor_files.ShardedTensors({"x": held}, copy)
            if copy:
                for tensor in held.values():
                    tensor.add_(1)
            written.write("x", path)
    read = load_file(path)
    assert read.keys() == {*WHOLE, "of worker 0"}
    for key, tensor in WHOLE.items():
        assert torch.equal(read[key], tensor), key
    assert torch.equal(read["of worker 0"], WHOLE["vector"])


def test_a_share_that_is_missing_leaves_nothing_and_nobody_waiting(tmp_path: Path) -> None:
    with worker(0, 3):
        (tmp_path / ".written-1").touch()
        given_up = ["worker 2: No space left on device"]
        with pytest.raises(OSError, match="did not write its share: worker 2: No space left"):
            tensor_files.await_others(tmp_path, given_up)
        (tmp_path / ".written-2").touch()
        tensor_files.await_others(tmp_path, [])
    assert list(tmp_path.iterdir()) == [], "marks are no part of a checkpoint"


def test_a_worker_with_a_full_disk_says_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "full").symlink_to("/dev/full")
    with worker(1, 2):
        mesh = init_device_mesh("cpu", (2,))
        tensor = distribute_tensor(torch.randn(4, 4), mesh, [Shard(0)], src_data_rank=None)
        shards = tensor_files.ShardedTensors({"full": {"a": tensor}}, True)
        with pytest.raises(OSError, match="No space left"):
            shards.write_all(tmp_path)
    assert not (tmp_path / ".written-1").exists()


@pytest.mark.slow
def test_what_workers_wrote_goes_on_under_any_strategy_and_number_of_workers(
    configure: Configure, tmp_path: Path
) -> None:
    def config(strategy: str, workers: int, resume: Path | None = None, **more: Any) -> Any:
        size = STEADY["training__batch_size"]
        rows = size if strategy == "tensor" else int(str(size)) // workers
        changed = {"training__batch_size": rows, "parallel__strategy": strategy, **more}
        return configure(**(STEADY | changed), resume=str(resume) if resume else None)

    step = Path("checkpoints") / "step-3"
    run(config("ddp", 1), tmp_path / "alone")
    wanted = losses(tmp_path / "alone")
    whole_on_workers({"zero3 of 4": config("zero3", 4)}, tmp_path, 4)
    two = {
        "fsdp of 2": config("fsdp", 2),
        "tensor of 2": config("tensor", 2),
        "4 to 2": config("fsdp", 2, tmp_path / "zero3 of 4" / step),
        "1 to 2": config("zero2", 2, tmp_path / "alone" / step),
        "4 to ddp": config("ddp", 2, tmp_path / "zero3 of 4" / step),
    }
    whole_on_workers(two, tmp_path, 2)
    whole_on_workers({"2 to 4": config("zero1", 4, tmp_path / "fsdp of 2" / step)}, tmp_path, 4)
    for name in ("zero3 of 4", "tensor of 2"):
        run_on(config("ddp", 1, tmp_path / name / step), tmp_path / f"{name} to 1")
    for name in [p.name for p in tmp_path.iterdir() if (p / "summary.json").is_file()]:
        onward = " to " in name
        _close(losses(tmp_path / name), wanted[3:] if onward else wanted)
        folder = tmp_path / name / "checkpoints" / "step-6"
        assert checkpoint.damage(folder) is None
        names = {p.name for p in (tmp_path / "alone" / "checkpoints" / "step-6").iterdir()}
        assert {p.name for p in folder.iterdir()} == names, "one format for all"
        for file in (checkpoint.WEIGHTS, checkpoint.MOMENTS):
            one, two_ = (
                load_file(tmp_path / "alone" / "checkpoints" / "step-6" / file),
                load_file(folder / file),
            )
            assert one.keys() == two_.keys()
            for key in one:
                torch.testing.assert_close(two_[key], one[key], rtol=1e-3, atol=1e-4, msg=key)


def _dies_while_writing(rank: int, folder: str, port: int, config: dict[str, Any]) -> None:
    import os

    from aift_ray.engine.checkpoint import writer

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    writer._PATIENCE, real = 2.0, tensor_files.ShardedTensors.write

    def write(self: tensor_files.ShardedTensors, name: str, path: Path) -> None:
        if "step-6" in str(path) and name == checkpoint.MOMENTS:
            os._exit(9)
        real(self, name, path)

    if rank == 1:
        tensor_files.ShardedTensors.write = write  # type: ignore[method-assign]
    whole_run(RunConfig.model_validate(config), Path(folder), Group(rank, 2, CPU))


@pytest.mark.slow
def test_a_worker_that_dies_while_it_writes_leaves_the_checkpoint_before(
    configure: Configure, tmp_path: Path
) -> None:
    run(configure(**STEADY), tmp_path / "alone")
    more = {"training__batch_size": 2, "parallel__strategy": "fsdp", "training__max_steps": 8}
    config = configure(**(STEADY | more), output_dir=str(tmp_path / "run"))
    port, values = free_port(), config.model_dump(mode="json")
    context = multiprocessing.get_context("spawn")
    given = [(rank, str(tmp_path / "run"), port, values) for rank in (0, 1)]
    workers = [context.Process(target=_dies_while_writing, args=one) for one in given]
    for one in workers:
        one.start()
    for one in workers:
        one.join(200)
    assert [one.exitcode for one in workers] == [1, 9]
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.steps(folder) == [3]
    assert checkpoint.damage(folder / "step-3") is None
    run_on(configure(**STEADY, resume=str(folder / "step-3")), tmp_path / "onward")
    _close(losses(tmp_path / "onward"), losses(tmp_path / "alone")[3:])
