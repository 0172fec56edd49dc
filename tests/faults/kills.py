"""Kills a training run again and again, and compares what comes out with one left alone.

    python -m tests.faults.kills --kills 25 --output kills.json

Victims are drawn from a seed: a worker, the driver, the raylet (all with SIGKILL), at random
moments and while a checkpoint is being written. Every time the same command is given again with
`--resume latest`. At the end the losses of all steps must be those of the undisturbed run, to the
bit, each step once. Prints a line a kill and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from aift_ray.engine import checkpoint
from aift_ray.ray_backend.reaper import alive
from tests.conftest import KEITAI
from tests.helpers.command import Command, curve_of, flags, summary_of, until

STEPS, SAVE_EVERY = 700, 7
VICTIMS = ("worker", "driver", "raylet", "worker while saving", "driver while saving")
# a word of the command line of each kind of process; the driver is the command itself
WORDS = {"worker": "RayTrainWorker", "raylet": "raylet/raylet", "actor": "_RolloutActor"}
WORDS |= {"reward": "aift_ray.rewards.reward_worker", "child": "aift_ray.train"}


def main() -> None:
    """Run undisturbed, run with kills, compare."""
    arguments = options(__doc__, 25, "kills.json").parse_args()
    result = compared(command, Path(tempfile.mkdtemp()), arguments, VICTIMS, curve_of)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    finish(result, arguments.kills)


def options(description: str | None, kills: int, output: str) -> argparse.ArgumentParser:
    """What every such test can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(output))
    return parser


def compared(
    start: Callable[[Path], Command],
    folder: Path,
    arguments: argparse.Namespace,
    victims: Sequence[str],
    curve: Callable[[Path], list[tuple[Any, ...]]],
    most: int = 4,
) -> dict[str, Any]:
    """A run left alone and one that is killed, both in `folder`.

    Args:
        start: begins the run of a folder, or goes on with it.
        curve: what must be equal, a row a step.
        most: steps between two kills.
    """
    status, text = start(folder / "whole").done(900)
    assert status == 0, text
    rng, killed = random.Random(arguments.seed), folder / "killed"
    kills = disturbed(lambda: start(killed), killed, arguments.kills, rng, victims, most)
    return {
        "kills": kills,
        "steps": len(curve(folder / "whole")),
        "equal to the bit": curve(folder / "whole") == curve(killed),
        "lost steps, most": max(kill["lost_steps"] for kill in kills),
        "seconds to recover, most": max(kill["seconds_to_recover"] for kill in kills),
        "date": time.strftime("%Y-%m-%d"),
    }


def finish(result: dict[str, Any], wanted: int) -> NoReturn:
    """Print what came out; status 1 where the runs differ, or were killed too seldom."""
    print({name: value for name, value in result.items() if name != "kills"})
    sys.exit(0 if result["equal to the bit"] and len(result["kills"]) >= wanted else 1)


def command(folder: Path) -> Command:
    """The run, started or gone on with; LoRA with dropout, filled rows, accumulation."""
    argv = flags(
        Path("hina-4m"),
        KEITAI / "train.jsonl",
        folder,
        method="lora",
        lora__lora_dropout=0.1,
        data__packing="fill",
        training__batch_size=1,
        training__gradient_accumulation_steps=2,
        training__learning_rate=1e-3,
        training__max_steps=STEPS,
        training__save_steps=SAVE_EVERY,
        ray__max_failures=-1,
    )
    return resumed(argv)


def resumed(argv: list[str]) -> Command:
    """A run, started or gone on with."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return Command([*argv, "--resume", "latest"], environment)


def disturbed(
    start: Callable[[], Command],
    folder: Path,
    wanted: int,
    rng: random.Random,
    victims: Sequence[str],
    most: int = 4,
) -> list[dict[str, Any]]:
    """Kill until the run is done in spite of it, every `most` steps or more often.

    Args:
        start: begins the run, or goes on with it.
        victims: of which one is drawn each time.
    """
    kills: list[dict[str, Any]] = []
    running = start()
    while True:
        # the later kills come when few steps are left, so they are spread over what remains
        if len(kills) < wanted and progressed(running, folder, rng.randint(1, most)):
            kill = strike(running, folder, rng.choice(victims))
            kills.append(kill)
            if not running.alive():
                kill["seconds_to_vanish"] = round(vanished(running), 1)
                running = start()
            kill["seconds_to_recover"] = round(recovered(running, folder), 1)
            print(kill, flush=True)
        elif not running.alive():
            status, text = running.done()
            assert status == 0, text
            assert summary_of(folder)["status"] == "done"
            return kills
        else:
            time.sleep(0.2)


def progressed(running: Command, folder: Path, steps: int) -> bool:
    """Wait for some steps of this attempt; whether the run still runs."""
    start = steps_logged(folder)
    return until(lambda: steps_logged(folder) >= start + steps or not running.alive(), 240) and (
        running.alive()
    )


def steps_logged(folder: Path) -> int:
    """Steps in the metrics file."""
    return len(curve_of(folder)) if (folder / "metrics.jsonl").is_file() else 0


def strike(running: Command, folder: Path, victim: str) -> dict[str, Any]:
    """Kill `victim`; where and when it was."""
    partial = folder / "checkpoints"
    if victim.endswith("while saving"):
        until(lambda: any(partial.glob(".step-*.partial")) or not running.alive(), 60, 0.0005)
    process = find(running, victim.split()[0])
    saved = checkpoint.steps(partial)
    lost = steps_logged(folder) - (saved[-1] if saved else 0)
    if process is not None:
        process.send_signal(signal.SIGKILL)
    if victim.startswith(("driver", "raylet")):
        until(lambda: not running.alive(), 120)
    return {"victim": victim, "step": steps_logged(folder), "lost_steps": lost}


def find(running: Command, victim: str) -> psutil.Process | None:
    """The process to kill."""
    root = psutil.Process(running.process.pid)
    if victim == "driver":
        return root
    word = WORDS[victim]
    found = [p for p in root.children(recursive=True) if word in " ".join(p.cmdline())]
    return found[-1] if found else None


def vanished(running: Command) -> float:
    """Seconds until nothing of the killed run is alive; an error after 30."""
    began = time.monotonic()
    assert until(lambda: not any(map(alive, running.family())), 30)
    return time.monotonic() - began


def recovered(running: Command, folder: Path) -> float:
    """Seconds until a step is logged again."""
    began, stamp = time.monotonic(), time.time()
    log = folder / "metrics.jsonl"
    until(lambda: not running.alive() or (log.is_file() and _last_time(log) > stamp), 240)
    return time.monotonic() - began


def _last_time(log: Path) -> float:
    lines = [line for line in log.read_text("utf-8").splitlines() if line.endswith("}")]
    return float(json.loads(lines[-1])["time"]) if lines else 0.0


if __name__ == "__main__":
    main()
