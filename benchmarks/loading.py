"""What each of two workers holds while a model is loaded, and while a checkpoint is written.

A random Llama of some 500 MB. Counted is anonymous memory (RssAnon, sampled every 2 ms, over what
the process had before): pages of the model's file that are only read are the file's, and the system
takes them back when it needs room. `--only deepspeed` measures the cases whose names begin so, by
the interpreter of `make test-deepspeed`.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import measuring
from measuring import Processes, Result
from train_throughput import free_port

NUMBERS = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
# blocks by the dtype of the file: about as many bytes each
LAYERS = {"float32": 10, "bfloat16": 20}
# name: (dtype of the file, method, strategy, whether a copy is taken for the writer)
CASES = {
    "ddp, full, from fp32": ("float32", "full", "ddp", True),
    "fsdp, full, from fp32": ("float32", "full", "fsdp", True),
    "fsdp, full, from fp32, no copy": ("float32", "full", "fsdp", False),
    "ddp, full, from bf16": ("bfloat16", "full", "ddp", True),
    "fsdp, full, from bf16": ("bfloat16", "full", "fsdp", False),
    "tensor, full, from bf16": ("bfloat16", "full", "tensor", False),
    "ddp, qlora nf4, from fp32": ("float32", "qlora", "ddp", True),
    "fsdp, qlora nf4, from fp32": ("float32", "qlora", "fsdp", True),
    "deepspeed zero2, full, from bf16": ("bfloat16", "full", "deepspeed zero2", False),
    "deepspeed zero3, full, from fp32": ("float32", "full", "deepspeed zero3", False),
    "deepspeed zero3, full, from bf16": ("bfloat16", "full", "deepspeed zero3", False),
    "deepspeed zero3, qlora nf4, from fp32": ("float32", "qlora", "deepspeed zero3", False),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(measuring.RESULTS / "loading.json"))
    parser.add_argument("--only", default="", help="begin of the names of the cases")
    options = parser.parse_args()
    found: dict[str, Result] = {}
    chosen = {
        name: case
        for name, case in CASES.items()
        if name.startswith(options.only) and (find_spec("deepspeed") or "deepspeed" not in name)
    }
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as folder:
        processes = Processes(Path(folder), 1)
        for dtype in LAYERS:
            cases = {name: case for name, case in chosen.items() if case[0] == dtype}
            found |= _measured(processes, dtype, cases)
    header = ["", "weights, MiB", "weights read", "ready to train", "after a step", "while saving"]
    keys = ("weights_mib", "loaded_mib", "built_mib", "held_mib", "saved_mib")
    rows = [[name, *(f"{result[key]:.0f}" for key in keys)] for name, result in found.items()]
    print(measuring.table(header, rows))
    measuring.write(Path(options.output), {"options": vars(options), "contestants": found})


def _measured(
    processes: Processes, dtype: str, cases: dict[str, tuple[str, str, str, bool]]
) -> dict[str, Result]:
    folder = processes.folder / dtype
    numbers = NUMBERS | {"num_hidden_layers": LAYERS[dtype]}
    spec = {"folder": str(folder), "numbers": numbers, "dtype": dtype}
    size = processes.contestant("random_model", **spec)
    variants = {name: variant(folder, case) for name, case in cases.items()}
    processes.contestant("prepare", folder=str(folder), variants=variants)
    found = {}
    for name in cases:
        common = {"job": str(folder / f"{name}.job"), "world": 2, "port": free_port()}
        workers = processes.contestants("loading", [common | {"rank": r} for r in (0, 1)])
        most = {key: max(worker[key] for worker in workers) for key in workers[0]}
        found[name] = most | {"weights_mib": size["bytes"] / 2**20, "workers": workers}
    return found


def variant(folder: Path, case: tuple[str, str, str, bool]) -> dict[str, Any]:
    _, method, strategy, copy = case
    rows = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai" / "train.jsonl"
    backend, _, stage = strategy.rpartition(" ")
    settings = {
        "model": str(folder / "model"),
        "method": method,
        "parallel": {"strategy": stage, "backend": backend or "auto"},
        "training": {
            "precision": "fp32",
            "async_save": copy,
            "batch_size": 1,
            "gradient_accumulation_steps": 1,
        },
        "data": {"train_files": [str(rows)]},
    }
    return {"settings": settings, "workers": 2}


if __name__ == "__main__":
    main()
