"""From the command to the end of the first step: `aift_ray.train` against a bare TorchTrainer.

Both start Ray and two gloo workers on this machine. The bare script's workers import torch and
transformers and take one step on a layer of 8 x 8; this project also reads the configuration,
tokenizes the rows, loads the shipped model, and tries the longest batch first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result

ROWS = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai" / "eval.jsonl"


def main() -> None:
    """Measure, print, write; or, with --bare, be the contestant."""
    options = _options()
    if options.bare:
        _bare(Path(options.bare))
        return
    with tempfile.TemporaryDirectory(prefix="aift-launch-") as name:
        processes = Processes(Path(name), 1)
        rows = Path(name) / "rows.jsonl"
        lines = Path(options.train_file).read_text("utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: options.rows]), "utf-8")
        calls = {
            "bare": lambda number: _run_bare(processes, number),
            "aift": lambda number: _run_own(processes, rows, number),
        }
        found = measuring.alternate(calls, options.rounds)
    ratios = measuring.compare(found, [Pair("aift", "bare", "seconds", "<= 1.3")])
    names = {"seconds": "command to first step, s", "start_s": "start_s", "whole_s": "to exit, s"}
    rows_ = [[name, *[_column(results, key) for key in names]] for name, results in found.items()]
    print(measuring.table(["contestant", *names.values()], rows_) + "\n")
    print(measuring.ratio_table(ratios))
    content = {"options": vars(options), "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-file", default=str(ROWS), help="rows as JSON Lines")
    parser.add_argument("--rows", type=int, default=64, help="first rows of it to use")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "launch_time.json"))
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    return parser.parse_args()


def _column(results: list[Result], key: str) -> str:
    return measuring.shown([r[key] for r in results], 1) if key in results[0] else ""


def _timed(processes: Processes, command: list[str]) -> tuple[float, float]:
    """When the command began, and the seconds until it had ended."""
    began = time.time()
    ended = subprocess.run(
        command, capture_output=True, text=True, env=processes.environment, cwd=processes.folder
    )
    if ended.returncode:
        raise RuntimeError(f"{command} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return began, time.time() - began


def _run_bare(processes: Processes, number: int) -> Result:
    folder = processes.folder / f"bare-{number}"
    command = [sys.executable, str(Path(__file__).resolve()), "--bare", str(folder)]
    began, whole = _timed(processes, command)
    stepped = float((folder / "stepped").read_text())
    return {"seconds": stepped - began, "whole_s": whole}


def _run_own(processes: Processes, rows: Path, number: int) -> Result:
    folder = processes.folder / f"own-{number}"
    # the token cache is made anew each time, as on a first run
    shutil.rmtree(processes.folder / "cache", ignore_errors=True)
    command = [sys.executable, "-m", "aift_ray.train", "--num-workers", "2"]
    command += ["--method", "full", "--train-file", str(rows), "--max-steps", "1"]
    command += ["--training.warmup_steps", "0", "--output-dir", str(folder)]
    began, whole = _timed(processes, command)
    first = json.loads((folder / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    return {
        "seconds": first["time"] - began,
        "start_s": summary["start_s"],
        "whole_s": whole,
    }


def _bare(folder: Path) -> None:
    """The least that trains on two workers with Ray Train."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # a cluster of its own, without a dashboard, as this project starts it
    ray.init("local", include_dashboard=False)
    trainer = TorchTrainer(
        _bare_step,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(name="bare", storage_path=str(folder)),
    )
    trainer.fit()


def _bare_step(settings: dict[str, Any]) -> None:
    import time
    from pathlib import Path

    import ray.train.torch
    import torch
    import transformers  # noqa: F401

    model = ray.train.torch.prepare_model(torch.nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        Path(settings["folder"], "stepped").write_text(str(time.time()))


if __name__ == "__main__":
    main()
