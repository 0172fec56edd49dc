"""Kills a run of reinforcement learning again and again, as `kills` does a supervised one.

    python -m tests.faults.kills_of_rollouts --way asynchronous --kills 8 --output kills.json

Victims are drawn from a seed: the command, the process that trains, an actor that generates, and
the process that computes rewards, all with SIGKILL at random moments. At the end the loss, the
gradient norm and the reward of all steps must be those of the undisturbed run, to the bit, each
step once. Prints a line a kill; the results of a way are added to the JSON file.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.conftest import KEITAI
from tests.faults.kills import compared, finish, options, resumed
from tests.helpers.command import Command, flags

STEPS, SAVE_EVERY = 45, 2
REWARD = """
import hashlib
import time


def digest(prompts, completions, **columns):
    # long enough to be killed in the middle of it
    time.sleep(0.05)
    return [hashlib.sha256(repr(each).encode()).digest()[0] / 255 for each in completions]
"""
# settings of each way, and the processes that it has
APART = {"grpo__placement": "apart", "grpo__rollout_workers": 1, "num-workers": 1}
# those of whose loss a run recovers without a restart come more often
ON_RAY = ("driver", "worker", *(("actor", "reward") * 3))
WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "colocated": ({"num-workers": 1}, ("driver", "child", "reward")),
    "apart": (APART, ON_RAY),
    "asynchronous": (APART | {"grpo__asynchronous": "true"}, ON_RAY),
}


def main() -> None:
    """Run undisturbed, run with kills, compare."""
    parser = options(__doc__, 8, "kills_of_rollouts.json")
    parser.add_argument("--way", choices=WAYS, required=True)
    arguments = parser.parse_args()
    folder, (_, victims) = Path(tempfile.mkdtemp()), WAYS[arguments.way]
    (folder / "rewards.py").write_text(REWARD, "utf-8")
    start = partial(command, way=arguments.way)
    result = compared(start, folder, arguments, victims, curve_of, most=3)
    held = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    held[arguments.way] = result
    arguments.output.write_text(json.dumps(held, indent=1) + "\n", "utf-8")
    finish(result, arguments.kills)


def command(folder: Path, way: str) -> Command:
    """The run, started or gone on with: two steps a generation, a reference, prompts replaced."""
    argv = flags(
        Path("hina-4m"),
        KEITAI / "train.jsonl",
        folder,
        objective="grpo",
        reward=f"{folder.parent / 'rewards.py'}:digest",
        grpo__num_generations=4,
        grpo__max_completion_length=12,
        grpo__rollout_batch_size=8,
        grpo__steps_per_generation=2,
        grpo__beta=0.05,
        training__batch_size=16,
        training__learning_rate=2e-3,
        training__max_steps=STEPS,
        training__save_steps=SAVE_EVERY,
        ray__max_failures=-1,
        **WAYS[way][0],
    )
    return resumed(argv)


def curve_of(folder: Path) -> list[tuple[Any, ...]]:
    """Step, loss, gradient norm and reward of each step that a run has logged."""
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(s["step"], s["loss"], s["grad_norm"], s.get("reward")) for s in lines if "loss" in s]


if __name__ == "__main__":
    main()
