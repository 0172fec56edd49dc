"""A worker of a group of GPUs, for tests: argv has world, port, a JSON file of runs and the rank.

NCCL joins them, a worker a GPU; where there are fewer, gloo joins workers that share the first.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from aift_ray.config import RunConfig
from aift_ray.engine.build import build
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
from tests.helpers.runs import stepped


def main() -> None:
    """Take all steps of each run; losses, memory between steps and where the weights lie."""
    world, port, path, rank = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    enough = torch.cuda.device_count() >= world
    device = torch.device("cuda", rank if enough else 0)
    torch.cuda.set_device(device)
    backend = "nccl" if enough else "gloo"
    dist.init_process_group(
        backend,
        f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    found: dict[str, Any] = {}
    for name, values in json.loads(path.read_text("utf-8")).items():
        config = RunConfig.model_validate(values)
        prepared = prepare(config, path.parent, world, True, None)
        torch.cuda.reset_peak_memory_stats(device)
        run = build(prepared.job, Group(rank, world, device))
        loading = torch.cuda.max_memory_allocated(device)
        lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
        found[name] = {
            "lines": lines,
            "loading": loading,
            "held": torch.cuda.memory_allocated(device),
            "devices": sorted({weight.device.type for weight in run.module.parameters()}),
        }
        del run
        torch.cuda.empty_cache()
    path.with_name(f"gpu{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
