"""Supervised tokens a second on rows of mixed length: this project against TRL's SFTTrainer.

The shipped model, full fine-tuning in fp32 on one thread, the same token ids for all. A batch is
8 rows, or 4 filled rows of 512 tokens, which hold about as many tokens. Then two workers of this
project against one. Contestants take turns, each in a fresh process.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result

MODEL = measuring.ROOT / "aift_ray" / "models" / "assets" / "hina-4m"
ROWS = measuring.SHARED / "data" / "instruction" / "dolly_ja.train.jsonl"
RATE = 1e-5
KEY = "supervised_per_s"
PAIRS = [
    Pair("aift concat", "trl default", KEY, ">= 1.5"),
    Pair("aift fill", "trl default", KEY, ">= 1.5"),
    Pair("aift concat", "trl packed", KEY, ">= 1.1"),
    Pair("aift fill", "trl packed", KEY, ">= 1.1"),
    Pair("aift 2 workers", "aift concat", KEY, ">= 1.7"),
    Pair("aift 2 workers, batch halved", "aift concat", KEY),
]


def main() -> None:
    """Measure, print, write."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes = Processes(Path(name), 1)
        counts = processes.contestant("prepare", **_preparation(options, Path(name)))
        calls = _contestants(processes, options)
        found = measuring.alternate(calls, options.rounds)
    ratios = measuring.compare(found, PAIRS)
    _check(found, counts["train"])
    _show(found, counts["train"], ratios)
    content = {"options": vars(options), "data": counts, "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL), help="model folder")
    parser.add_argument("--train-file", default=str(ROWS), help="rows as JSON Lines")
    parser.add_argument("--rows", type=int, default=256, help="first rows of it to use; 0: all")
    parser.add_argument("--length", type=int, default=512, help="tokens a row at most")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--packed-batch", type=int, default=4, help="filled rows a step")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of contestants; default: all")
    parser.add_argument("--output", default=str(measuring.RESULTS / "train_throughput.json"))
    return parser.parse_args()


def _preparation(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    lines = Path(options.train_file).read_text("utf-8").splitlines(keepends=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(lines[: options.rows or None]), "utf-8")

    def variant(packing: str, batch: int, workers: int) -> dict[str, Any]:
        training = {
            "learning_rate": RATE,
            "batch_size": batch,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "lr_scheduler": "constant",
            "precision": "fp32",
            "gradient_checkpointing": False,
        }
        data = {
            "train_files": [str(rows)],
            "sequence_length": options.length,
            "packing": packing,
        }
        settings = {"model": options.model, "method": "full", "training": training, "data": data}
        return {"settings": settings, "workers": workers}

    variants = {
        "concat": variant("concat", options.batch, 1),
        "fill": variant("fill", options.packed_batch, 1),
        "two": variant("concat", options.batch, 2),
        "halved": variant("concat", max(1, options.batch // 2), 2),
    }
    return {"folder": str(folder), "variants": variants}


def _contestants(
    processes: Processes, options: argparse.Namespace
) -> dict[str, Callable[[int], Result]]:
    folder, common = processes.folder, {"warmup": options.warmup}

    def aift(name: str) -> Callable[[int], Result]:
        job = str(folder / f"{name}.job")
        return lambda number: processes.contestant("aift", job=job, **common)

    def two(name: str) -> Callable[[int], Result]:
        def call(number: int) -> Result:
            spec = {"job": str(folder / f"{name}.job"), "world": 2, "port": free_port()} | common
            both = processes.contestants("aift", [spec | {"rank": rank} for rank in (0, 1)])
            return min(both, key=lambda result: result[KEY])

        return call

    def trl(batch: int, **arguments: Any) -> Callable[[int], Result]:
        spec = common | {
            "trainer": "trl",
            "model": options.model,
            "tokenizer": str(folder / "tokenizer"),
            "rows": str(folder / "train.json"),
            "batch": batch,
            "bf16": False,
            "learning_rate": RATE,
            "arguments": {"max_length": options.length} | arguments,
        }
        return lambda number: processes.contestant("peer", **spec)

    calls = {
        "aift concat": aift("concat"),
        "trl default": trl(options.batch),
        "aift fill": aift("fill"),
        "trl packed": trl(options.packed_batch, packing=True),
        "aift 2 workers": two("two"),
        "aift 2 workers, batch halved": two("halved"),
    }
    return {name: call for name, call in calls.items() if name in (options.only or calls)}


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _check(found: dict[str, list[Result]], data: dict[str, int]) -> None:
    """Every contestant must have trained every supervised token once."""
    expected = data["supervised_tokens"]
    seen = {name: results[0]["supervised_tokens"] for name, results in found.items()}
    wrong = {name: number for name, number in seen.items() if number != expected}
    if wrong:
        sys.exit(f"not the {expected} supervised tokens of the rows: {wrong}")
    print(f"supervised tokens an epoch: {expected} for every contestant")


def _show(
    found: dict[str, list[Result]], data: dict[str, int], ratios: list[dict[str, Any]]
) -> None:
    print(f"{data['rows']} rows, {data['tokens']} tokens, the longest {data['longest']}\n")
    header = ["contestant", "supervised tokens/s", "tokens/s", "timed steps", "tokens a step"]
    rows = [
        [
            name,
            measuring.shown([r[KEY] for r in results], 0),
            measuring.shown([r["tokens_per_s"] for r in results], 0),
            str(results[0]["timed_steps"]),
            f"{results[0]['tokens'] / results[0]['steps']:.0f}",
        ]
        for name, results in found.items()
    ]
    print(measuring.table(header, rows) + "\n")
    print(measuring.ratio_table(ratios))


if __name__ == "__main__":
    main()
