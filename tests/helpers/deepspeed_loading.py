"""A worker that loads models for DeepSpeed's ZeRO 3, and writes what it has held whole of them.

argv holds rank, world, port and a JSON file of configurations.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from torch import nn

from aift_ray.config import RunConfig
from aift_ray.parallel import deepspeed_zero
from aift_ray.parallel.dtensor_utils import is_partitioned
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel
from tests.helpers.runs import CPU, started


def main() -> None:
    """{name: bytes held whole at most, and of each part} in loading{rank}.json."""
    rank, world, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found: dict[str, tuple[int, list[int]]] = {}
    ready, name = deepspeed_zero._ready, ""

    def watched(module: LossModel, group: Group) -> Iterator[nn.Module]:
        # weights that are as they were loaded: in the file, or in 4 bits this worker's shard
        waiting = {w: w.data_ptr() for w in module.parameters()}
        most, parts = 0, list[int]()
        for part in ready(module, group):
            parts.append(sum(w.nbytes for w in part.parameters() if not is_partitioned(w)))
            touched = [w for w, place in waiting.items() if w.data_ptr() != place]
            most = max(most, sum(w.nbytes for w in touched if not is_partitioned(w)))
            yield part
        found[name] = most, parts

    deepspeed_zero._ready = watched
    for name, values in json.loads(path.read_text("utf-8")).items():
        started(RunConfig.model_validate(values), path.parent / name, Group(rank, world, CPU))
    path.with_name(f"loading{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
