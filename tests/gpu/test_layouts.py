"""Model parallel and pipeline on real GPUs: with two of them, or one and the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine.build import build
from aift_ray.engine.checkpoint.writer import snapshot
from aift_ray.models.split import pieces_of
from aift_ray.parallel.group import Group
from aift_ray.planning.partition import HOST
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.ports import free_port
from tests.helpers.runs import stepped

Configure = Callable[..., Any]
CUDA = torch.cuda.device_count()
two_devices = pytest.mark.skipif(CUDA < 2, reason="needs two CUDA devices")
METHODS = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
}


def curves(config: Any, folder: Path, split: list[int] | None) -> Any:
    """Losses, norms and final weights of a run; its two blocks on the devices `split`."""
    prepared = prepare(config, folder, 1, True, None)
    job = prepared.job
    if split is not None:
        names = pieces_of(build(job, Group(0, 1, torch.device("cuda", 0))).module.model).names
        # the output layer beside the embeddings whose weight it shares
        places = [split[0], *split, split[-1], split[0]]
        job = replace(job, layout=dict(zip(names, places, strict=True)))
    run = build(job, Group(0, 1, torch.device("cuda", 0)))
    lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
    return lines, snapshot(run).model


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", [[0, HOST], pytest.param([0, 1], marks=two_devices)])
def test_blocks_on_two_devices_train_what_one_device_trains(
    split: list[int], method: str, precision: str, configure: Configure, tmp_path: Path
) -> None:
    if precision == "fp16" and HOST in split:
        pytest.skip("a CPU multiplies in fp16 too slowly to be asked")
    more = METHODS[method] | {"training__precision": precision, "lora__lora_dropout": 0.0}
    alone = configure(**more)
    spread = configure(parallel__strategy="model_parallel", **more)
    spread.parallel.max_memory_per_gpu = {0: "20GB"}
    found = parity.differences(curves(alone, tmp_path, None), curves(spread, tmp_path, split))
    # the kernels of the two kinds of devices round 16 bits differently
    halved = 1e-1 if HOST in split else 2e-2
    assert max(found) < (1e-4 if precision == "fp32" else halved)


@two_devices
def test_a_map_of_two_gpus_puts_blocks_on_both(configure: Configure, tmp_path: Path) -> None:
    sizes = {0: "7MB", 1: "20MB"}
    config = configure(
        method="lora", parallel__strategy="model_parallel", parallel__max_memory_per_gpu=sizes
    )
    run = build(prepare(config, tmp_path, 1, True, None).job, Group(0, 1, torch.device("cuda", 0)))
    places = {p.device.index for p in run.module.parameters()}
    assert places == {0, 1}
    assert stepped(run, 2)[-1]["loss"] > 0


def stage(rank: int, folder: str, case: tuple[str, str, str, str], port: int) -> None:
    """A worker of a NCCL pipeline; worker 0 leaves losses and weights in the folder."""
    import torch.distributed as dist

    device, place = torch.device("cuda", rank), Path(folder)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = parity.settings(case, 2, place / "tiny", place / "train.jsonl")
    run = build(prepare(config, place, 2, True, None).job, Group(rank, 2, device))
    lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
    weights = snapshot(run).model
    if rank == 0:
        torch.save((lines, weights), place / "found.pt")
    dist.destroy_process_group()


@two_devices
@pytest.mark.parametrize("strategy", ["pipeline", "pipeline gpipe", "pipeline interleaved"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora nf4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stages_over_nccl_train_what_one_device_trains(
    precision: str, method: str, strategy: str, tmp_path: Path
) -> None:
    import torch.multiprocessing as mp

    make_tiny_model(tmp_path / "tiny", num_hidden_layers=4)
    write_rows(tmp_path / "train.jsonl", 22)
    case = (strategy, method, precision, "concat")
    mp.spawn(stage, (str(tmp_path), case, free_port()), 2)
    single = parity.settings(("ddp", *case[1:]), 1, tmp_path / "tiny", tmp_path / "train.jsonl")
    found = parity.differences(curves(single, tmp_path, None), torch.load(tmp_path / "found.pt"))
    assert max(found) < (1e-4 if precision == "fp32" else 2e-2)
