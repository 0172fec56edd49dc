"""A sharded run's checkpoint by this project and by torch.distributed.checkpoint, in turn.

A random Llama of some 500 MB, full fine-tuning in fp32 under fsdp on two gloo workers, after one
step. Each writer writes weights and moments to the same disk; ours writes digests too. Counted are
the seconds until training goes on, those until everything is on the disk, anonymous memory over
what a worker held before, and the bytes that were written. What was written is read back and
compared with the run bit by bit.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import measuring
from loading import LAYERS, NUMBERS, variant
from measuring import Processes, Result
from train_throughput import free_port

# what writes: whether a copy is taken, so that training goes on meanwhile
WRITERS = {
    "ours": True,
    "ours, no copy": False,
    "dcp": False,
    "dcp async": True,
    "dcp hugging face": False,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "checkpoint_writers.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes, folder = Processes(Path(name), 1), Path(name)
        numbers = NUMBERS | {"num_hidden_layers": LAYERS["float32"]}
        processes.contestant("random_model", folder=name, numbers=numbers, dtype="float32")
        cases = {True: "copy", False: "no copy"}
        variants = {
            kind: variant(folder, ("float32", "full", "fsdp", copy)) for copy, kind in cases.items()
        }
        processes.contestant("prepare", folder=name, variants=variants)

        def call(writer: str, copy: bool) -> Any:
            common = {"job": str(folder / f"{cases[copy]}.job"), "world": 2, "writer": writer}

            def once(_: int) -> Result:
                port = free_port()
                specs = [common | {"rank": rank, "port": port} for rank in (0, 1)]
                workers = processes.contestants("checkpoint_writer", specs)
                worst = {key: max(worker[key] for worker in workers) for key in workers[0]}
                return worst | {"equal": all(worker["equal"] for worker in workers)}

            return once

        calls = {writer: call(writer, copy) for writer, copy in WRITERS.items()}
        found = measuring.alternate(calls, options.rounds)
    keys = ("waited_s", "total_s", "saved_mib", "written_mib", "files_mib", "equal")
    header = [
        "",
        "training waits, s",
        "on disk, s",
        "memory, MiB",
        "written, MiB",
        "files",
        "equal",
    ]
    rows = [
        [name, *(measuring.shown([float(r[key]) for r in results], 2) for key in keys)]
        for name, results in found.items()
    ]
    print(measuring.table(header, rows))
    measuring.write(Path(options.output), {"options": vars(options), "contestants": found})


if __name__ == "__main__":
    main()
