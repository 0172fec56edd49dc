"""Two workers under each strategy against one process, and what each worker holds.

A random Llama of some 40 million parameters, in fp32, one thread a worker, the same rows a step
for all. What a worker holds at the end of a step is held against `planning.memory`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result
from train_throughput import free_port

STRATEGIES = ("ddp", "zero1", "zero2", "fsdp", "tensor", "pipeline")
# those whose two workers hold one model together
APART = ("tensor", "pipeline")
UNITS, RANK, KEY = 32, 16, "tokens_per_s"
# measured over computed may differ by this share
BOUND = 0.05


def main() -> None:
    """Measure, print, write; exit 1 where a worker holds what arithmetic does not say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--steps", type=int, default=5, help="of which the first is not timed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output")
    options = parser.parse_args()
    name = f"strategies_{options.method}.json"
    output = Path(options.output or measuring.RESULTS / name)
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as folder:
        processes = Processes(Path(folder), 1)
        processes.contestant("random_model", folder=folder)
        variants = {"alone": _variant(options, Path(folder), "ddp", 1)}
        variants |= {s: _variant(options, Path(folder), s, 2) for s in STRATEGIES}
        processes.contestant("prepare", folder=folder, variants=variants)
        calls = {n: _call(processes, n, v["workers"]) for n, v in variants.items()}
        found = measuring.alternate(calls, options.rounds)
        computed = {s: _computed(options.method, s, Path(folder)) for s in STRATEGIES}
    ratios = measuring.compare(found, [Pair(s, "alone", KEY) for s in STRATEGIES])
    held = {s: _against(found[s][0]["held"], computed[s]) for s in STRATEGIES}
    _show(found, held, ratios)
    content = {"options": vars(options), "contestants": found, "ratios": ratios, "held": held}
    measuring.write(output, content)
    off = [n for n, parts in held.items() if any(abs(p["ratio"] - 1) > BOUND for p in parts)]
    sys.exit(f"not what arithmetic says: {', '.join(off)}" if off else 0)


def _variant(
    options: argparse.Namespace, folder: Path, strategy: str, workers: int
) -> dict[str, Any]:
    rows = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai" / "train.jsonl"
    replicas = 1 if strategy in APART else workers
    parallel: dict[str, Any] = {"strategy": strategy}
    if strategy == "pipeline":
        parallel |= {"pipeline_parallel_size": workers, "pipeline_microbatches": 4 * workers}
    training = {
        "batch_size": UNITS // replicas,
        "gradient_accumulation_steps": 1,
        "max_steps": options.steps,
        "warmup_steps": 0,
        "precision": "fp32",
        "gradient_checkpointing": False,
    }
    settings = {
        "model": str(folder / "model"),
        "method": options.method,
        "parallel": parallel,
        "lora": {"r": RANK, "lora_dropout": 0.0},
        "training": training,
        "data": {"train_files": [str(rows)]},
    }
    return {"settings": settings, "workers": workers}


def _call(processes: Processes, name: str, workers: int) -> Callable[[int], Result]:
    job = str(processes.folder / f"{name}.job")

    def call(number: int) -> Result:
        spec = {"job": job, "warmup": 1, "world": workers, "port": free_port()}
        specs = [spec | {"rank": rank} for rank in range(workers)]
        all_ = processes.contestants("aift", specs)
        slowest = min(all_, key=lambda result: result[KEY])
        return slowest | {"held": [result["held_bytes"] for result in all_]}

    return call


def _computed(method: str, strategy: str, folder: Path) -> dict[str, int]:
    import json

    from aift_ray.planning.memory_estimate import Workload, memory
    from aift_ray.planning.model_shape import Shape

    shape = Shape.of(json.loads((folder / "model" / "config.json").read_text("utf-8")))
    apart = 2 if strategy in APART else 1
    need = memory(
        shape, Workload(method, RANK, 1, 4, False, None, strategy, 2, model_parallel_size=apart)
    )
    gradients = need.gradients // (2 if strategy == "zero1" else 1)
    # at the end of a step, zero1 too has shares of the gradients only
    return {"weights": need.weights, "gradients": gradients, "optimizer": need.optimizer}


def _against(workers: list[dict[str, int]], computed: dict[str, int]) -> list[dict[str, Any]]:
    """The worker that holds the most of each part, against what is computed."""
    return [
        {
            "part": part,
            "measured": max(worker[part] for worker in workers),
            "computed": size,
            "ratio": max(worker[part] for worker in workers) / size,
        }
        for part, size in computed.items()
    ]


def _show(
    found: dict[str, list[Result]], held: dict[str, Any], ratios: list[dict[str, Any]]
) -> None:
    rows = [
        [name, measuring.shown([r[KEY] for r in results], 0)] for name, results in found.items()
    ]
    print("\n" + measuring.table(["two workers", "tokens/s"], rows) + "\n")
    print(measuring.ratio_table(ratios) + "\n")
    lines = [
        [name, *(f"{p['measured'] / 2**20:.1f} ({p['ratio']:.3f})" for p in parts)]
        for name, parts in held.items()
    ]
    header = ["a worker holds, MiB (of computed)", "weights", "gradients", "optimizer"]
    print(measuring.table(header, lines))


if __name__ == "__main__":
    main()
