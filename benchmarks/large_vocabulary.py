"""LoRA on a model with a large vocabulary: speed, memory and held-out loss against the peers.

gemma3-270m (262,144 tokens), r=16 on every linear layer, bf16, no gradient checkpointing for
anybody, one pass over the same token ids in the same order from the same adapters: this project
against transformers' Trainer with PEFT, and TRL's SFTTrainer as it comes and packed (which orders
the rows anew). TRL 1.16 has one loss: `nll` is computed in pieces, and `chunked_nll` is its
deprecated alias; --both-losses runs it by both names.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result

FOLDER = measuring.SHARED / "data" / "instruction"
RATE = 2e-4
RANK = 16
SPEED, MEMORY = "supervised_per_s", "peak_gib"


def main() -> None:
    """Measure, print, write."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes = Processes(Path(name), options.threads)
        counts = processes.contestant("prepare", **_preparation(options, Path(name)))
        found = measuring.alternate(_contestants(processes, options), options.rounds)
    ratios = measuring.compare(found, _pairs(found))
    _show(found, counts, ratios)
    content = {"options": vars(options), "data": counts, "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of gemma3-270m")
    parser.add_argument("--train-file", default=str(FOLDER / "dolly_ja.train.jsonl"))
    parser.add_argument("--eval-file", default=str(FOLDER / "dolly_ja.eval.jsonl"))
    parser.add_argument("--rows", type=int, default=48, help="first training rows to use")
    parser.add_argument("--eval-rows", type=int, default=64, help="first held-out rows to use")
    parser.add_argument("--length", type=int, default=512, help="tokens a row at most")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--packed-batch", type=int, default=2, help="filled rows a step")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--both-losses", action="store_true", help="also loss_type=chunked_nll")
    parser.add_argument("--only", nargs="*", help="names of contestants; default: all")
    parser.add_argument("--output", default=str(measuring.RESULTS / "large_vocabulary.json"))
    return parser.parse_args()


def _preparation(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    files = {"train": (options.train_file, options.rows)}
    files["eval"] = (options.eval_file, options.eval_rows)
    for part, (source, number) in files.items():
        lines = Path(source).read_text("utf-8").splitlines(keepends=True)
        (folder / f"{part}.jsonl").write_text("".join(lines[:number]), "utf-8")
    training = {
        "learning_rate": RATE,
        "batch_size": options.batch,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "lr_scheduler": "constant",
        "precision": "bf16",
        "gradient_checkpointing": False,
    }
    settings = {
        "model": options.model,
        "method": "lora",
        "lora": {"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0},
        "training": training,
        "data": {
            "train_files": [str(folder / "train.jsonl")],
            "eval_files": [str(folder / "eval.jsonl")],
            "sequence_length": options.length,
        },
    }
    return {
        "folder": str(folder),
        "variants": {"concat": {"settings": settings, "workers": 1}},
    }


def _contestants(
    processes: Processes, options: argparse.Namespace
) -> dict[str, Callable[[int], Result]]:
    folder = processes.folder
    common = {
        "warmup": options.warmup,
        "bf16": True,
        "rows": str(folder / "train.json"),
        "job": str(folder / "concat.job"),
        "model": options.model,
        "tokenizer": str(folder / "tokenizer"),
        "learning_rate": RATE,
        "lora": RANK,
        # the peers start with the adapters, and take the rows in the order, of this project
        "start": str(folder / "start.pt"),
    }

    def call(function: str, **spec: Any) -> Callable[[int], Result]:
        # the loss is the same every time: once is enough
        return lambda number: processes.contestant(
            function, **common, **spec, eval_rows=0 if number else options.eval_rows
        )

    def peer(trainer: str, batch: int, **arguments: Any) -> Callable[[int], Result]:
        return call("peer", trainer=trainer, batch=batch, arguments=arguments)

    length, packed = {"max_length": options.length}, options.packed_batch
    calls = {
        "aift concat": call("aift"),
        "transformers + peft": peer("transformers", options.batch),
        "trl default": peer("trl", options.batch, **length),
        "trl packed": peer("trl", packed, packing=True, **length),
    }
    if options.both_losses:
        chunked = {"loss_type": "chunked_nll"} | length
        calls["trl packed chunked_nll"] = peer("trl", packed, packing=True, **chunked)
    return {name: made for name, made in calls.items() if name in (options.only or calls)}


def _pairs(found: dict[str, list[Result]]) -> list[Pair]:
    own, *peers = found
    return [
        *[Pair(own, peer, SPEED, ">= 1.5 of the fastest") for peer in peers],
        *[Pair(own, peer, MEMORY, "<= 0.7 of the fastest's") for peer in peers],
    ]


def _show(
    found: dict[str, list[Result]], counts: dict[str, Any], ratios: list[dict[str, Any]]
) -> None:
    for part, data in counts.items():
        print(f"{part}: {data}")
    header = ["contestant", "supervised tokens/s", "peak GiB", "held-out loss", "steps"]
    header += ["supervised tokens"]
    rows = [
        [
            name,
            measuring.shown([r[SPEED] for r in results], 1),
            measuring.shown([r[MEMORY] for r in results]),
            f"{results[0]['eval_loss']:.4f}" if "eval_loss" in results[0] else "",
            str(results[0]["steps"]),
            str(results[0]["supervised_tokens"]),
        ]
        for name, results in found.items()
    ]
    print("\n" + measuring.table(header, rows) + "\n")
    print(measuring.ratio_table(ratios))


if __name__ == "__main__":
    main()
