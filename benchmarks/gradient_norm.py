"""Norm and clipping of gradients, and the step of AdamW, in host memory: before, and now.

    python benchmarks/gradient_norm.py --threads 1 --cpus 2 --rounds 5

The norm was torch's in fp64. The step is torch's fused one both before and now: a worker had one
thread for it, and has its share of the machine's CPUs. All are timed in one process, in turn; the
JSON lies in benchmarks/results/gradient_norm.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# matrices of a block of a 13B model, a quarter each way
_SHAPES = [(1280, 1280)] * 4 + [(3456, 1280)] * 3


def in_double(parameters: list[Any]) -> float:
    """As before: each gradient's norm in fp64."""
    import torch

    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters]
    return float(torch.stack(norms).square().sum().sqrt())


def clipped_always(parameters: list[Any]) -> float:
    """As before: the same, and a scale of 1 put to all of them."""
    import torch

    norm = in_double(parameters)
    torch.nn.utils.clip_grads_with_norm_(parameters, 1e9, torch.tensor(norm))
    return norm


def main() -> None:
    """Time, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of norm and clipping")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="of AdamW's step now")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=4)
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from aift_ray.parallel.dtensor_utils import clip_gradients, gradient_norm

    torch.set_num_threads(asked.threads)
    parameters = [torch.zeros(shape) for shape in _SHAPES * asked.blocks]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adamw = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def stepped(threads: int) -> float:
        torch.set_num_threads(threads)
        adamw.step()
        torch.set_num_threads(asked.threads)
        return float(parameters[0].flatten()[0])

    ways: dict[str, Callable[[], Any]] = {
        "norm, before": lambda: in_double(parameters),
        "norm, now": lambda: float(gradient_norm(parameters)),
        "norm and clip, before": lambda: clipped_always(parameters),
        "norm and clip, now": lambda: clip_gradients(parameters, 1e9),
        "AdamW, before": lambda: stepped(1),
        "AdamW, now": lambda: stepped(asked.cpus),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for number in range(asked.rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way()
            if number:
                found[name].append(time.perf_counter() - began)
    numbers = sum(p.numel() for p in parameters)
    result = {
        "numbers": numbers,
        "threads": asked.threads,
        "cpus": asked.cpus,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "seconds": found,
        "norms": {n: float(norm) for n, norm in results.items() if n.startswith("norm")},
    }
    path = ROOT / "benchmarks" / "results" / "gradient_norm.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{numbers:,} numbers, {asked.threads} threads")
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"{name:24}{middle:8.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")


if __name__ == "__main__":
    main()
