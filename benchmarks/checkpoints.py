"""What training waits for its checkpoints: written at once, against written meanwhile.

A random Llama of some 40 million parameters, full fine-tuning in fp32 on one thread, so that a
checkpoint holds three times the weights; a checkpoint every few steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "checkpoints.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes = Processes(Path(name), 1)
        processes.contestant("random_model", folder=name)
        processes.contestant("prepare", folder=name, variants=_variants(Path(name)))

        def call(variant: str) -> Any:
            job = str(Path(name) / f"{variant}.job")
            spec = {"job": job, "steps": options.steps, "every": options.every}
            return lambda number: processes.contestant("saving", **spec)

        calls = {variant: call(variant) for variant in ("async", "sync")}
        found = measuring.alternate(calls, options.rounds)
    ratios = measuring.compare(found, [Pair("async", "sync", "waited_s")])
    _show(found, ratios)
    content = {"options": vars(options), "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _variants(folder: Path) -> dict[str, Any]:
    rows = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai"

    def variant(meanwhile: bool) -> dict[str, Any]:
        training = {
            "batch_size": 16,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "async_save": meanwhile,
            "keep_checkpoints": 1,
        }
        data = {
            "train_files": [str(rows / "train.jsonl")],
            "eval_files": [str(rows / "eval.jsonl")],
        }
        settings = {"model": str(folder / "model"), "method": "full"}
        return {"settings": settings | {"training": training, "data": data}, "workers": 1}

    return {"async": variant(True), "sync": variant(False)}


def _show(found: dict[str, list[Result]], ratios: list[dict[str, Any]]) -> None:
    header = ["saving", "waited, s", "share of the time", "of, s", "checkpoint, MiB"]
    keys = ("waited_s", "share", "seconds", "checkpoint_mib")
    rows = [
        [name, *(measuring.shown([r[key] for r in results], 3) for key in keys)]
        for name, results in found.items()
    ]
    print("\n" + measuring.table(header, rows) + "\n")
    print(measuring.ratio_table(ratios))


if __name__ == "__main__":
    main()
