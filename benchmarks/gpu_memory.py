"""What the plan computes a GPU to hold, against what it held; and the tokens a second.

    python benchmarks/gpu_memory.py [--cases NAME ...] [--card-gib 22]

Random weights in the shapes of published models, with the shipped tokenizer, on Japanese rows laid
into rows of 2,048 tokens, one a step, each block recomputed: full fine-tuning, LoRA and QLoRA in
bf16. Each case in a process of its own, with no more of the card's memory than `--card-gib`: what
trains under 22 GiB trains on a card of 24.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
from measuring import Processes, Result

from aift_ray.models import catalog

ROWS = measuring.SHARED / "data" / "instruction" / "dolly_ja.train.jsonl"
# name: model of the catalog, method and further settings of the training
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3-0.6b full": ("Qwen/Qwen3-0.6B", "full", {}),
    "qwen3-1.7b lora": ("Qwen/Qwen3-1.7B", "lora", {}),
    "llama3-8b lora": ("elyza/Llama-3-ELYZA-JP-8B", "lora", {}),
    "llama3-8b qlora": ("elyza/Llama-3-ELYZA-JP-8B", "qlora", {}),
}


def main() -> None:
    """Measure, print, write."""
    options = _options()
    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-", dir=options.scratch) as name:
        processes = Processes(Path(name), 8)
        made = ""
        for case in options.cases:
            named, method, training = CASES[case]
            if named != made:
                shutil.rmtree(Path(name) / "model", ignore_errors=True)
                numbers = catalog.CATALOG[named].architecture.config()
                model_type = numbers.pop("model_type")
                size = {"numbers": numbers, "kind": model_type, "dtype": "bfloat16"}
                processes.contestant("random_model", folder=name, **size)
                made = named
            settings = _settings(Path(name), options, method, training)
            variants = {"run": {"settings": settings, "workers": 1}}
            try:
                processes.contestant("prepare", folder=name, variants=variants)
                found[case] = processes.contestant(
                    "aift", job=f"{name}/run.job", warmup=3, card_gib=options.card_gib
                )
            except RuntimeError as error:
                print(f"{case}: {str(error)[-1500:]}", file=sys.stderr)
                found[case] = {"error": str(error).strip().splitlines()[-1]}
            _show(found)
    measuring.write(Path(options.output), {"options": vars(options), "cases": found})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--card-gib", type=float, default=22.0, help="memory to use at most")
    parser.add_argument("--length", type=int, default=2048, help="tokens a row")
    parser.add_argument("--steps", type=int, default=13, help="3 of them before the clock starts")
    parser.add_argument("--train-file", default=str(ROWS), help="rows as JSON Lines")
    parser.add_argument("--scratch", help="folder for the models, some 20 GB")
    parser.add_argument("--output", default=str(measuring.RESULTS / "gpu_memory.json"))
    return parser.parse_args()


def _settings(
    folder: Path, options: argparse.Namespace, method: str, training: dict[str, Any]
) -> dict[str, Any]:
    common = {
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": options.steps,
        "warmup_steps": 0,
        "precision": "bf16",
        "gradient_checkpointing": True,
    }
    data = {
        "train_files": [str(Path(options.train_file).resolve())],
        "sequence_length": options.length,
        "packing": "fill",
    }
    model = str(folder / "model")
    return {"model": model, "method": method, "training": common | training, "data": data}


def _show(found: dict[str, Result]) -> None:
    header = ["case", "computed GiB", "held GiB", "held / computed", "tokens/s"]
    rows = []
    for case, result in found.items():
        if "error" in result:
            rows.append([case, "", result["error"][:60], "", ""])
            continue
        computed, held = result["computed_total_gib"], result["peak_gib"]
        figures = f"{computed:.2f}", f"{held:.2f}", f"{held / computed:.2f}"
        rows.append([case, *figures, f"{result['tokens_per_s']:,.0f}"])
    print(measuring.table(header, rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
