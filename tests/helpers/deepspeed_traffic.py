"""A worker that takes a step by DeepSpeed, and writes the bytes that its collectives are given.

argv holds rank, world, port and a JSON file of configurations.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aift_ray.config import RunConfig
from aift_ray.parallel.group import Group
from tests.helpers.runs import CPU, started, stepped


class Counted(TorchDispatchMode):
    """Adds up the largest tensor of each collective, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            held = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
            self.bytes[func._opname] += max((t.nbytes for t in held), default=0)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """{name: {collective: bytes of the second step}} in rank{rank}.json."""
    rank, world, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = {}
    for name, values in json.loads(path.read_text("utf-8")).items():
        run = started(RunConfig.model_validate(values), path.parent, Group(rank, world, CPU))
        stepped(run, 1)
        with Counted() as counted:
            stepped(run, 1)
        trained = sum(getattr(p, "ds_numel", p.numel()) for p in run.module.parameters())
        found[name] = {**counted.bytes, "weights": 4 * trained}
    path.with_name(f"rank{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
