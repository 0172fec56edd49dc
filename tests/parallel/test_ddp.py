"""What the workers of data parallel send each other when they begin."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aift_ray.engine.build import build
from aift_ray.engine.job import Job
from aift_ray.parallel import ddp
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare


def _end() -> None:
    dist.destroy_process_group()
    # gloo's threads wait now and then for a worker that has gone, when the model is freed
    os._exit(0)


class Layer(torch.nn.Module):
    """A frozen weight and a trained one, other numbers on each worker."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.full((3,), 1.0 + rank), requires_grad=False)
        self.trained = torch.nn.Parameter(torch.full((3,), 5.0 + rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.frozen + self.trained).sum()


def _begin(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    layer = Layer(rank)
    copies = ddp.replicate(layer, Group(rank, 2, torch.device("cpu")))
    copies(torch.full((3,), 1.0 + rank)).backward()
    found = [layer.frozen, layer.trained, layer.trained.grad]
    torch.save([t.detach() for t in found if t is not None], f"{folder}/{rank}")
    _end()


def test_trained_weights_begin_alike_and_frozen_ones_are_not_sent(tmp_path: Path) -> None:
    mp.spawn(_begin, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    (one, trained, grad), (other, trained_there, grad_there) = (
        torch.load(tmp_path / str(rank)) for rank in (0, 1)
    )
    assert (one[0], other[0]) == (1.0, 2.0), "each keeps what it has loaded"
    assert torch.equal(trained, trained_there)
    assert trained[0] == 5.0
    assert torch.equal(grad, grad_there), "averaged as before"


def _build(rank: int, folder: str, job: Job) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    # nothing is sent: what is equal then was made so
    torch.distributed.broadcast = lambda *_: None
    # another worker has drawn other numbers before
    torch.manual_seed(rank)
    run = build(job, Group(rank, 2, torch.device("cpu")))
    torch.save(dict(run.module.named_parameters()), f"{folder}/{rank}")
    _end()


def test_workers_make_equal_weights_without_a_word(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    config = configure(method="lora", parallel__strategy="ddp", ray__num_workers=2)
    job = prepare(config, tmp_path, 2, False, None).job
    mp.spawn(_build, (str(tmp_path), job), nprocs=2)  # type: ignore[no-untyped-call]
    one, other = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert one.keys() == other.keys()
    assert sum(weight.requires_grad for weight in one.values()) > 0
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
