"""Whether the GPUs of this machine exchange data: a sum over all of them, in time or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def exchange(devices: int, limit: float, backend: str = "nccl", **variables: str) -> str:
    """Sum a tensor over `devices` processes, one a GPU; why that fails, empty where it doesn't.

    Args:
        limit: seconds, after which the processes are ended: a sum that hangs says nothing.
        backend: gloo on CPUs.
        variables: of the processes' environment, beside this one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"log-{rank}") for rank in range(devices)]
        # -P: beside this file lie modules with names as other packages have them
        command = [sys.executable, "-P", __file__, backend, f"{folder}/store", str(devices)]
        started = []
        for rank, log in enumerate(logs):
            with log.open("wb") as to:
                started.append(
                    subprocess.Popen(
                        [*command, str(rank)],
                        stdout=to,
                        stderr=to,
                        env=os.environ | variables,
                    )
                )
        try:
            failed = _wait(started, limit)
        finally:
            for process in started:
                process.kill()
                process.wait()
        if failed is None:
            return f"no answer within {limit:.0f} s"
        return _last_line(logs[failed]) if failed >= 0 else ""


def _wait(started: list[subprocess.Popen[bytes]], limit: float) -> int | None:
    """Number of the first process that fails; -1: none does; None: they take longer."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        codes = [process.poll() for process in started]
        wrong = [rank for rank, code in enumerate(codes) if code]
        if wrong:
            return wrong[0]
        if all(code == 0 for code in codes):
            return -1
        time.sleep(0.1)
    return None


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "a process ended without a word"


def _work(backend: str, store: str, world: int, rank: int) -> None:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, f"file://{store}", rank=rank, world_size=world)
    # 16 MiB: small messages take another way than gradients
    values = torch.full((2**22,), float(rank + 1), device=device)
    dist.all_reduce(values)
    wrong = int((values != world * (world + 1) / 2).sum())
    dist.destroy_process_group()
    if wrong:
        sys.exit(f"{wrong} of {values.numel()} sums are wrong")


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
