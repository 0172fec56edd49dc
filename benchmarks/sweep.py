"""Does a sweep find a better setting, and what does early stopping save? On the shipped model.

python benchmarks/sweep.py FOLDER [PIECE ...]: the pieces, which can be run one by one, are the
sweeps none, asha and optuna; compare-NAME, which trains the default, the demo's or a sweep's best
setting; and report, which writes results/sweep.json. All they make lies in FOLDER.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from measuring import RESULTS, ROOT, Processes, table, write

ROWS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
TRIALS, STEPS, EVALUATED = 12, 108, 100
# steps and evaluation of every run here, so that they can be compared
COMMON = {
    "max_steps": STEPS,
    # the first evaluation, where trials are compared first, lies about where warm-ups end
    "eval_steps": 18,
    "save_steps": STEPS,
    "logging_steps": 18,
    "gradient_checkpointing": False,
}
SPACE: dict[str, Any] = {
    "model": "hina-4m",
    "training": COMMON
    | {
        "learning_rate": {"loguniform": [1e-4, 3e-2]},
        "batch_size": {"choice": [4, 8, 16]},
        "gradient_accumulation_steps": 1,
        "warmup_steps": {"randint": [0, 20]},
    },
    "lora": {"r": {"choice": [4, 16, 32]}, "lora_dropout": {"choice": [0.0, 0.05]}},
    "ray": {"num_workers": 1},
}
SWEEPS = {"none": ("none", "random"), "asha": ("asha", "random"), "optuna": ("asha", "optuna")}
COMPARED = ("default", "demo", *SWEEPS)
SEEDS = (42, 43, 44)


def main() -> None:
    """Run the pieces that the command line names, all by default."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    every = [*SWEEPS, *(f"compare-{name}" for name in COMPARED), "report"]
    pieces = sys.argv[2:] or every
    rows = (ROWS / "eval.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "eval.jsonl").write_text("".join(rows[:EVALUATED]), "utf-8")
    for piece in pieces:
        if piece in SWEEPS:
            sweep(folder, piece)
        elif piece.startswith("compare-"):
            compare(folder, piece.removeprefix("compare-"))
    if "report" in pieces:
        report(folder)


def called(folder: Path, verb: str, *flags: str) -> float:
    """Run a verb as a user does; its seconds."""
    command = [sys.executable, "-m", "aift_ray", verb, *flags]
    began = time.monotonic()
    subprocess.run(command, env=Processes(folder, 1).environment, cwd=ROOT, check=True)
    return time.monotonic() - began


def sweep(folder: Path, name: str) -> None:
    """Twelve trials, two at once; the random ones are the same in every sweep."""
    scheduler, search = SWEEPS[name]
    tune = {"num_samples": TRIALS, "max_concurrent": 2, "scheduler": scheduler, "search": search}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(SPACE | {"tune": tune}), "utf-8")
    files = ["--train-file", str(ROWS / "train.jsonl"), "--eval-file", str(folder / "eval.jsonl")]
    place = ["--output-dir", str(folder / name), "--overwrite"]
    seconds = called(folder, "tune", "--config", str(folder / f"{name}.yaml"), *files, *place)
    (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds}), "utf-8")


def compare(folder: Path, name: str) -> None:
    """A setting on all evaluation rows; a best one with three seeds, which show the noise."""
    values: dict[str, Any] = {"training": {}}
    if name != "default":
        path = ROOT / "examples" / "demo.yaml" if name == "demo" else folder / name / "best.yaml"
        values = yaml.safe_load(path.read_text("utf-8"))
    match = {"exact_match_rows": 400, "exact_match_batch_size": 64, "exact_match_max_tokens": 48}
    values["training"] |= COMMON | match | {"eval_steps": STEPS}
    files = {"train_files": [str(ROWS / "train.jsonl")], "eval_files": [str(ROWS / "eval.jsonl")]}
    values |= {"data": files, "ray": {"num_workers": 1}}
    path = folder / f"compare-{name}.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    for seed in SEEDS if name in SWEEPS else SEEDS[:1]:
        place = folder / "compare" / f"{name}-{seed}"
        flags = ["--seed", str(seed), "--output-dir", str(place), "--overwrite"]
        called(folder, "train", "--config", str(path), *flags)


def report(folder: Path) -> None:
    """Gather what the pieces have left, print it, and write the results."""
    found: dict[str, Any] = {"sweeps": {}, "compared": {}}
    for name in SWEEPS:
        if (folder / f"{name}.json").is_file():
            found["sweeps"][name] = account(folder, name)
    for path in sorted((folder / "compare").glob("*/summary.json")):
        summary, name = json.loads(path.read_text("utf-8")), path.parent.name.rsplit("-", 1)[0]
        values = found["compared"].setdefault(name, {"eval_loss": [], "exact_match": []})
        for key in values:
            values[key].append(summary[key])
    sweeps = found["sweeps"].items()
    header = ["sweep", "steps", "seconds", "best trial", "its loss", "ran to the end"]
    keys = ("steps", "seconds", "best_trial", "best_loss", "ended")
    print(table(header, [[n, *[f"{s[k]:.5g}" for k in keys]] for n, s in sweeps]))
    lines = [
        [
            name,
            f"{statistics.mean(v['eval_loss']):.4f}",
            f"{statistics.pstdev(v['eval_loss']):.4f}",
            f"{statistics.mean(v['exact_match']):.1%}",
        ]
        for name, v in found["compared"].items()
    ]
    print(table(["setting", "loss, mean of its seeds", "deviation", "exact match"], lines))
    write(RESULTS / "sweep.json", found)


def account(folder: Path, name: str) -> dict[str, Any]:
    """Steps, time and best of a sweep, and its rows."""
    with (folder / name / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ended = [row for row in rows if row["status"] == "done"]
    first = min(ended, key=lambda row: float(row["eval_loss"]))
    return json.loads((folder / f"{name}.json").read_text("utf-8")) | {
        "steps": sum(int(row["steps"]) for row in rows),
        "ended": len(ended),
        "best_trial": int(first["trial"]),
        "best_loss": float(first["eval_loss"]),
        "trials": rows,
    }


if __name__ == "__main__":
    main()
