"""Train the shipped model by rewards: a short supervised run first, then answers of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
OUTPUT = ROOT / "outputs" / "reinforcement"
# of the supervised run: enough for some right answers, from which rewards can teach
SUPERVISED = [
    *("--model", "hina-4m", "--method", "lora", "--max-steps", "40", "--training.batch_size", "16"),
    *("--training.gradient_accumulation_steps", "1", "--training.learning_rate", "3e-3"),
    *("--training.warmup_steps", "5", "--training.gradient_checkpointing", "false"),
]


def main() -> None:
    """Train as a user would, and show the rewards of held-out prompts before and after."""
    rows = ["--train-file", str(ROWS / "train.jsonl")]
    first, second = OUTPUT / "supervised", OUTPUT / "grpo"
    train([*SUPERVISED, *rows], first)
    how = ["--config", str(ROOT / "examples" / "reinforcement.yaml"), *rows]
    how += ["--eval-file", str(ROWS / "eval.jsonl"), "--lora.init_from", str(first / "model")]
    train([*how, *sys.argv[1:]], second)
    summary = json.loads((second / "summary.json").read_text(encoding="utf-8"))
    rewards = (summary["eval_reward_before"], summary["eval_reward"])
    print("\nright answers to held-out prompts, sampled: {:.1%} -> {:.1%}".format(*rewards))
    print(f"samples: {second / 'samples.jsonl'}")


def train(arguments: list[str], output: Path) -> None:
    """Run `aift-ray train`; ends where it fails."""
    command = [sys.executable, "-m", "aift_ray.train", *arguments]
    status = subprocess.run([*command, "--output-dir", str(output), "--overwrite"], check=False)
    if status.returncode:
        sys.exit(status.returncode)


if __name__ == "__main__":
    main()
