"""Train the shipped model by rewards: a short supervised run first, then answers of its own.

    python examples/reinforcement.py --seed 1

Prints the share of right answers to prompts that were never trained, before and after, with a
paired test. Further flags go to the second run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
# of the supervised run: enough for some right answers, from which rewards can teach
SUPERVISED = [
    *("--model", "hina-4m", "--method", "lora", "--max-steps", "20", "--training.batch_size", "16"),
    *("--training.gradient_accumulation_steps", "1", "--training.learning_rate", "3e-3"),
    *("--training.warmup_steps", "5", "--training.gradient_checkpointing", "false"),
]


def main() -> None:
    """Train as a user would, and compare the two adapters on held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "reinforcement")
    given, further = parser.parse_known_args()
    folder = given.output / f"seed{given.seed}"
    rows = ["--train-file", str(ROWS / "train.jsonl"), "--training.seed", str(given.seed)]
    first, second = folder / "supervised", folder / "grpo"
    run("train", *SUPERVISED, *rows, "--output-dir", str(first), "--overwrite")
    how = ["--config", str(ROOT / "examples" / "reinforcement.yaml"), *rows]
    how += ["--eval-file", str(ROWS / "eval.jsonl"), "--lora.init_from", str(first / "model")]
    run("train", *how, "--output-dir", str(second), "--overwrite", *further)
    # the most likely answer to each held-out prompt; the second model is compared with the first
    both = ["--model", str(first / "model"), "--model", str(second / "model")]
    scores = folder / "evaluation" / "scores.json"
    run("evaluate", *both, "--task", str(ROWS / "eval.jsonl"), "--output", str(scores))
    summary = json.loads((second / "summary.json").read_text(encoding="utf-8"))
    rewards = (summary["eval_reward_before"], summary["eval_reward"])
    print("sampled answers, right before and after: {:.1%} -> {:.1%}".format(*rewards))
    print(f"samples: {second / 'samples.jsonl'}")


def run(verb: str, *arguments: str) -> None:
    """Run `aift-ray VERB`; ends where it fails."""
    status = subprocess.run([sys.executable, "-m", "aift_ray", verb, *arguments], check=False)
    if status.returncode:
        sys.exit(status.returncode)


if __name__ == "__main__":
    main()
