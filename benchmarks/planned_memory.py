"""What the plan of a CPU worker says that it holds, against what it held, by the launched command.

python benchmarks/planned_memory.py FOLDER ... --rows FILE [--only NAME ...]: for each model, runs
of several shapes with one worker, two steps each in fp32. Prints the peak of the worker's process
(summary.json) beside the plan's figure. Memory does not depend on other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring

KEITAI = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai"
_SHAPES: dict[str, dict[str, object]] = {
    "LoRA, short rows": {},
    "LoRA, short rows, activations kept": {"training.gradient_checkpointing": "false"},
    "LoRA, long rows": {"long": True},
    "full, short rows": {"method": "full"},
    "full, short rows, saved at each step": {"method": "full", "training.save_steps": 1},
    "full, long rows": {"method": "full", "long": True},
    "LoRA, short rows, 32 answers generated": {"eval-file": KEITAI / "eval.jsonl"},
}
_GENERATED = {"training.exact_match_rows": 32, "training.exact_match_max_tokens": 32}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="long rows, as JSON Lines")
    parser.add_argument("--only", nargs="*", choices=[*_SHAPES], default=[*_SHAPES])
    given = parser.parse_args()
    rows = []
    for model in given.models:
        for shape in given.only:
            planned, held = _run(model, _SHAPES[shape], given.rows)
            rows.append([f"{model.name}, {shape}", f"{planned:.2f}", f"{held:.2f}"])
            rows[-1].append(f"{planned / held:.2f}")
            print(*rows[-1], flush=True)
    print(measuring.table(["", "planned", "held", "planned / held"], rows))


def _run(model: Path, shape: dict[str, object], long_rows: Path) -> tuple[float, float]:
    """GiB that the plan says, and that the worker held."""
    with tempfile.TemporaryDirectory(prefix="aift-planned-") as name:
        folder = Path(name)
        source = long_rows if shape.get("long") else KEITAI / "eval.jsonl"
        lines = source.read_text("utf-8").splitlines(keepends=True)
        (folder / "rows.jsonl").write_text("".join(lines[:32]), "utf-8")
        argv: dict[str, object] = {"model": model, "train-file": folder / "rows.jsonl"}
        argv |= {"output-dir": folder / "run", "max-steps": 2, "num-workers": 1}
        argv |= {"training.warmup_steps": 0, "data.sequence_length": 512}
        argv |= {"training.gradient_accumulation_steps": 2}
        argv |= {key: value for key, value in shape.items() if key != "long"}
        argv |= _GENERATED if "eval-file" in shape else {}
        command = [sys.executable, "-m", "aift_ray.train"]
        command += [part for key, value in argv.items() for part in (f"--{key}", str(value))]
        environment = os.environ | {"PYTHONPATH": str(measuring.ROOT), "COLUMNS": "200"}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, env=environment, capture_output=True, text=True)
        planned = re.search(r"memory a worker +([0-9.]+) GiB", told.stdout)
        if told.returncode or not planned:
            raise SystemExit(told.stdout + told.stderr)
        summary = json.loads((folder / "run" / "summary.json").read_text("utf-8"))
        (held,) = summary["peak_memory_gb"]
        return float(planned[1]), float(held)


if __name__ == "__main__":
    main()
