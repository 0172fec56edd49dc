"""AdamW in host memory: torch's fused step against DeepSpeedCPUAdam, alternated in one process.

Run by the interpreter of `make test-deepspeed`: `python -m benchmarks.host_adam [MILLIONS]`. The
first DeepSpeedCPUAdam of a machine is compiled for half a minute (a C++ compiler and ninja).
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

ROUNDS = 7


def weights(count: int) -> list[torch.nn.Parameter]:
    """One flat weight of fp32 with a gradient, as ZeRO's partitions are."""
    made = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(count, generator=made))
    weight.grad = torch.randn(count, generator=made)
    return [weight]


def timed(step: Callable[[], object]) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    """Measure with one and two threads; print a table."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    count = int(float(sys.argv[1] if len(sys.argv) > 1 else "50") * 1e6)
    how = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    print(f"{count:,} elements in fp32, {platform.machine()}, torch {torch.__version__}")
    print("| threads | step | elements a second | range |\n|---|---|---|---|")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one, two = weights(count), weights(count)
        steps = {
            "torch AdamW, fused": torch.optim.AdamW(one, **how, fused=True).step,
            "DeepSpeedCPUAdam": DeepSpeedCPUAdam(two, **how, adamw_mode=True).step,
        }
        for step in steps.values():
            step()
        apart = (one[0] - two[0]).abs().max()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                times[name].append(timed(step))
        for name, found in times.items():
            rate, best, worst = (
                count / x / 1e6 for x in (statistics.median(found), min(found), max(found))
            )
            print(f"| {threads} | {name} | {rate:.0f} M | {worst:.0f} to {best:.0f} M |")
        print(f"largest difference after the first step: {float(apart):.1e}", file=sys.stderr)


if __name__ == "__main__":
    main()
