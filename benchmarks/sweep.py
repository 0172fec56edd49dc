"""Does a sweep find a better setting, and what does early stopping save? On the shipped model.

python benchmarks/sweep.py FOLDER [PIECE ...]: the pieces, which can be run one by one, are
none-SEED, every trial of a random search to its end; asha-SEED and optuna-SEED, the sweep as a user
calls it, two trials at once; compare-NAME, which trains the default or a sweep's best
setting with three seeds; and report, which replays ASHA on other draws of the trials and
writes results/sweep.json. All they make lies in FOLDER.

Without early stopping trials know nothing of each other, so they are trained in this process, one
after the other; the losses are those of the sweep to the bit, which the report checks on the trials
that ASHA lets run to their end.
"""

from __future__ import annotations

import csv
import heapq
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from measuring import RESULTS, ROOT, Processes, table, write

from aift_ray.config import TuneConfig

ROWS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
TRIALS, STEPS, EVALUATED, EVERY = 12, 72, 100, 6
# steps and evaluation of every run here, so that they can be compared
COMMON = {
    "max_steps": STEPS,
    "eval_steps": EVERY,
    "save_steps": STEPS,
    "logging_steps": EVERY,
    "gradient_checkpointing": False,
}
SPACE: dict[str, Any] = {
    "model": "hina-4m",
    "training": COMMON
    | {
        "learning_rate": {"loguniform": [1e-4, 3e-2]},
        "batch_size": {"choice": [4, 8, 16]},
        "gradient_accumulation_steps": 1,
        "warmup_steps": {"randint": [0, 8]},
    },
    "lora": {"r": {"choice": [4, 16, 32]}, "lora_dropout": {"choice": [0.0, 0.05]}},
    "ray": {"num_workers": 1},
}
# of the searches; and of the trainings that compare settings
SEARCHES, SEEDS = (42, 43, 44), (42, 43, 44)
REPLAYED = 300
# by which the losses of one setting differed between seeds
NOISE = 0.14


@dataclass(frozen=True)
class Curve:
    """A trial that ran to its end: its held-out loss by step."""

    losses: dict[int, float]
    batch_size: int

    @property
    def last(self) -> float:
        """The loss in the end."""
        return self.losses[STEPS]


def main() -> None:
    """Run the pieces that the command line names, all by default."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    sweeps = [f"{kind}-{seed}" for kind in ("none", "asha") for seed in SEARCHES]
    sweeps += [f"optuna-{SEARCHES[0]}"]
    compared = [f"compare-{name}" for name in ("default", *sweeps)]
    pieces = sys.argv[2:] or [*sweeps, *compared, "report"]
    rows = (ROWS / "eval.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "eval.jsonl").write_text("".join(rows[:EVALUATED]), "utf-8")
    for piece in pieces:
        kind, _, rest = piece.partition("-")
        if kind == "none":
            whole(folder, int(rest))
        elif kind in ("asha", "optuna"):
            sweep(folder, kind, int(rest))
        elif kind == "compare":
            compare(folder, rest)
    if "report" in pieces:
        report(folder)


def tuned(search: str, seed: int) -> dict[str, Any]:
    """The section `tune` of a sweep."""
    return {"num_samples": TRIALS, "max_concurrent": 2, "search": search, "seed": seed}


def whole(folder: Path, seed: int) -> None:
    """Every trial of a random search to its end; those that have ended are kept."""
    import torch

    from aift_ray.engine.worker import work
    from aift_ray.parallel.group import Group
    from aift_ray.runs.prepare import prepare
    from aift_ray.sweep.search import search
    from aift_ray.sweep.space import separate, trial_config

    torch.set_num_threads(1)
    data = {
        "train_files": [str(ROWS / "train.jsonl")],
        "eval_files": [str(folder / "eval.jsonl")],
    }
    values = yaml.safe_load(yaml.safe_dump(SPACE)) | {"tune": tuned("random", seed), "data": data}
    config, space = separate(values, [])
    drawing = search(space, config.tune)
    for number in range(TRIALS):
        choices, path = drawing.ask(number), folder / f"none-{seed}" / f"{number}.json"
        if path.is_file():
            continue
        one, place = trial_config(space, choices, {}), path.with_suffix(".run")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        work(prepare(one, place, 1, False, None).job, Group(0, 1, torch.device("cpu")))
        lines = map(json.loads, (place / "metrics.jsonl").read_text("utf-8").splitlines())
        curve = [[line["step"], line["eval_loss"]] for line in lines if "eval_loss" in line]
        settings = one.model_dump(mode="json", include={"training", "lora"})
        path.write_text(json.dumps({"settings": settings, "curve": curve}), "utf-8")
        shutil.rmtree(place)
        print(f"search {seed}, trial {number}: {curve[-1][1]:.4f}", flush=True)


def called(folder: Path, verb: str, *flags: str) -> float:
    """Run a verb as a user does; its seconds."""
    command = [sys.executable, "-m", "aift_ray", verb, *flags]
    began = time.monotonic()
    subprocess.run(command, env=Processes(folder, 1).environment, cwd=ROOT, check=True)
    return time.monotonic() - began


def sweep(folder: Path, kind: str, seed: int) -> None:
    """A sweep with early stopping."""
    name, tune = f"{kind}-{seed}", tuned("random" if kind == "asha" else kind, seed)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(SPACE | {"tune": tune}), "utf-8")
    files = ["--train-file", str(ROWS / "train.jsonl"), "--eval-file", str(folder / "eval.jsonl")]
    place = ["--output-dir", str(folder / name), "--overwrite"]
    seconds = called(folder, "tune", "--config", str(folder / f"{name}.yaml"), *files, *place)
    (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds}), "utf-8")


def curves(folder: Path, seed: int) -> list[Curve]:
    """The held-out loss of each trial by step, of a search without early stopping."""
    files = [folder / f"none-{seed}" / f"{number}.json" for number in range(TRIALS)]
    found = [json.loads(path.read_text("utf-8")) for path in files if path.is_file()]
    return [Curve(dict(one["curve"]), one["settings"]["training"]["batch_size"]) for one in found]


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    """The settings that are compared under a name."""
    if name == "default":
        return {"training": {}}
    if name.startswith("none-"):
        found = curves(folder, int(name.removeprefix("none-")))
        first = min(range(len(found)), key=lambda number: found[number].last)
        path = folder / name / f"{first}.json"
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))["settings"]
        return values | {"model": "hina-4m"}
    read: dict[str, Any] = yaml.safe_load((folder / name / "best.yaml").read_text("utf-8"))
    return read


def compare(folder: Path, name: str) -> None:
    """A setting on all evaluation rows; a best one with three seeds, which show the noise."""
    values = settings_of(folder, name)
    match = {"exact_match_rows": 400, "exact_match_batch_size": 64, "exact_match_max_tokens": 48}
    values["training"] |= COMMON | match | {"eval_steps": STEPS}
    files = {"train_files": [str(ROWS / "train.jsonl")], "eval_files": [str(ROWS / "eval.jsonl")]}
    values |= {"data": files, "ray": {"num_workers": 1}}
    path = folder / f"compare-{name}.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    for seed in SEEDS[:1] if name == "default" else SEEDS:
        place = folder / "compare" / f"{name}={seed}"
        flags = ["--seed", str(seed), "--output-dir", str(place), "--overwrite"]
        called(folder, "train", "--config", str(path), *flags)


def report(folder: Path) -> None:
    """Gather what the pieces have left, print it, and write the results."""
    pool = {seed: found for seed in SEARCHES if len(found := curves(folder, seed)) == TRIALS}
    found: dict[str, Any] = {"sweeps": {}, "compared": {}, "replayed": {}}
    for seed, trials in pool.items():
        best = min(trial.last for trial in trials)
        found["sweeps"][f"none-{seed}"] = {"steps": STEPS * len(trials), "best_loss": best}
        steps, best = replay(trials, TuneConfig().tolerance, diverged=True)
        found["sweeps"][f"replayed-{seed}"] = {"steps": steps, "best_loss": best}
    for path in sorted(folder.glob("*-*.json")):
        found["sweeps"][path.stem] = account(folder, path.stem, pool)
    for path in sorted((folder / "compare").glob("*/summary.json")):
        summary, name = json.loads(path.read_text("utf-8")), path.parent.name.split("=")[0]
        values = found["compared"].setdefault(name, {"eval_loss": [], "exact_match": []})
        for key in values:
            values[key].append(summary[key])
    every = [trial for trials in pool.values() for trial in trials]
    for name, tolerance, diverged in (
        ("shipped", TuneConfig().tolerance, True),
        ("tolerance 0", 0.0, True),
        ("tolerance 0.1", 0.1, True),
        ("tolerance 0.2", 0.2, True),
        ("plain ASHA", 0.0, False),
    ):
        found["replayed"][name] = replayed(every, tolerance, diverged)
    show(found)
    write(RESULTS / "sweep.json", found)


def show(found: dict[str, Any]) -> None:
    """Tables of what was found."""
    lines = [[n, f"{s['steps']}", f"{s['best_loss']:.4f}"] for n, s in found["sweeps"].items()]
    print(table(["sweep", "steps", "loss of its best"], lines))
    lines = [
        [
            name,
            ", ".join(f"{loss:.4f}" for loss in v["eval_loss"]),
            f"{statistics.mean(v['eval_loss']):.4f}",
            f"{statistics.pstdev(v['eval_loss']):.4f}",
            f"{statistics.mean(v['exact_match']):.1%}",
        ]
        for name, v in found["compared"].items()
    ]
    print(table(["setting", "loss by seed", "mean", "deviation", "exact match"], lines))
    lines = [
        [name, *[f"{value:.3f}" for value in r.values()]] for name, r in found["replayed"].items()
    ]
    print(table(["replayed", *found["replayed"]["shipped"]], lines))


def account(folder: Path, name: str, pool: dict[int, list[Curve]]) -> dict[str, Any]:
    """Steps, time and best of a sweep, and its rows."""
    with (folder / name / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ended = [row for row in rows if row["status"] == "done"]
    first = min(ended, key=lambda row: float(row["eval_loss"]))
    kind, seed = name.split("-")
    if kind == "asha":
        for row in ended:
            assert float(row["eval_loss"]) == pool[int(seed)][int(row["trial"])].last, row
    return json.loads((folder / f"{name}.json").read_text("utf-8")) | {
        "steps": sum(int(row["steps"]) for row in rows),
        "ended": len(ended),
        "best_trial": int(first["trial"]),
        "best_loss": float(first["eval_loss"]),
        "trials": rows,
    }


def replayed(pool: list[Curve], tolerance: float, diverged: bool) -> dict[str, float]:
    """The scheduler on sweeps of twelve trials drawn from all there were, in a random order.

    Args:
        diverged: whether it is told of the untrained model, and so stops who is worse.
    """
    draws, shares, behind = random.Random(0), [], []
    for _ in range(REPLAYED):
        trials = draws.sample(pool, TRIALS)
        steps, best = replay(trials, tolerance, diverged)
        shares.append(steps / (STEPS * TRIALS))
        behind.append(best / min(trial.last for trial in trials) - 1)
    return {
        "share of the steps": statistics.mean(shares),
        "over half": statistics.mean(share > 0.5 for share in shares),
        "same best": statistics.mean(loss == 0 for loss in behind),
        "within the noise": statistics.mean(loss < NOISE for loss in behind),
        "at most half, and within the noise": statistics.mean(
            share <= 0.5 and loss < NOISE for share, loss in zip(shares, behind, strict=True)
        ),
        "mean loss above": statistics.mean(behind),
    }


def replay(trials: list[Curve], tolerance: float, diverged: bool) -> tuple[int, float]:
    """Steps of a sweep with the project's own scheduler, two trials at once, and its best loss."""
    from aift_ray.ray_backend.tune_scheduler import scheduler

    rule: Any = scheduler(TuneConfig(tolerance=tolerance), EVERY, STEPS, [])
    steps, best, to_come = 0, float("inf"), list(range(len(trials)))
    # when a trial is evaluated next, after how many steps, and which one it is
    live: list[tuple[int, int, int]] = []
    now = 0
    while live or to_come:
        while to_come and len(live) < 2:
            number = to_come.pop(0)
            rule.on_trial_add(None, SimpleNamespace(trial_id=number))
            if diverged:
                told(rule, number, 0, trials[number])
            heapq.heappush(live, (now + trials[number].batch_size, EVERY, number))
        now, step, number = heapq.heappop(live)
        if step == STEPS:
            steps, best = steps + step, min(best, trials[number].losses[step])
        elif told(rule, number, step, trials[number]):
            steps += step
        else:
            heapq.heappush(live, (now + trials[number].batch_size, step + EVERY, number))
    return steps, best


def told(rule: Any, number: int, step: int, trial: Curve) -> bool:
    """Whether a scheduler that is told of an evaluation stops the trial."""
    result = {"step": step, "eval_loss": trial.losses[step]}
    return bool(rule.decide(None, SimpleNamespace(trial_id=number), result) == "STOP")


if __name__ == "__main__":
    main()
