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
    parser.add_argument("--layers", type=int, default=LAYERS["float32"])
    parser.add_argument("--output", default=str(measuring.RESULTS / "checkpoint_writers.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes, folder = Processes(Path(name), 1), Path(name)
        numbers = NUMBERS | {"num_hidden_layers": options.layers}
        processes.contestant("random_model", folder=name, numbers=numbers, dtype="float32")
        variants = {"run": variant(folder, ("float32", "full", "fsdp", True))}
        processes.contestant("prepare", folder=name, variants=variants)
        spec = {"job": str(folder / "run.job"), "world": 2, "port": free_port()}
        spec |= {"writers": WRITERS, "rounds": options.rounds}
        workers = processes.contestants("checkpoint_writers", [spec | {"rank": r} for r in (0, 1)])
    found = {name: _worst([worker[name] for worker in workers]) for name in WRITERS}
    keys = ("waited_s", "total_s", "saved_mib", "written_mib", "files_mib", "equal")
    header = ["", "training waits, s", "on disk, s", "memory, MiB", "written, MiB", "files, MiB"]
    header += ["equal"]
    rows = [
        [name, *(measuring.shown([float(r[key]) for r in results], 2) for key in keys)]
        for name, results in found.items()
    ]
    print(measuring.table(header, rows))
    measuring.write(Path(options.output), {"options": vars(options), "contestants": found})


def _worst(workers: list[list[Result]]) -> list[Result]:
    """Of each round what the slower or larger worker had; bytes written are those of both."""
    found = []
    for lines in zip(*workers, strict=True):
        line = {key: max(each[key] for each in lines) for key in lines[0]}
        line["written_mib"] = sum(each["written_mib"] for each in lines)
        line["equal"] = all(each["equal"] for each in lines)
        found.append(line)
    return found


if __name__ == "__main__":
    main()
