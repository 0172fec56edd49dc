"""A worker whose device is full in its first forward pass; writes what is told of it.

argv holds rank, world, port and a JSON file of configurations.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from aift_ray.config import RunConfig
from aift_ray.engine import loop
from aift_ray.engine.loss import LossModule
from aift_ray.errors import TrainingError
from aift_ray.parallel.group import Group
from aift_ray.planning import memory_parts
from tests.helpers.runs import CPU, started


def main() -> None:
    """{name: what the error says} in rank{rank}.json."""
    rank, world, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    # parts of so small a model would be 0.00 GiB
    memory_parts.GIB = 2**10
    found, forward = {}, LossModule.forward
    for name, values in json.loads(path.read_text("utf-8")).items():
        run = started(RunConfig.model_validate(values), path.parent, Group(rank, world, CPU))
        LossModule.forward = full  # type: ignore[assignment]
        try:
            loop.try_longest(run)
        except TrainingError as error:
            found[name] = str(error)
        LossModule.forward = forward  # type: ignore[method-assign]
    path.with_name(f"rank{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
