"""Train the shipped model by preferences, and show that its answers become polite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
OUTPUT = ROOT / "outputs" / "preference"
ASKED, SHOWN = 40, 3
POLITE = ("です。", "ます。", "ました。", "ません。", "でした。", "ましょう。", "でしょう。")


def main() -> None:
    """Train as a user would; ask the model before and after."""
    held_out = ROWS / "preferences-eval.jsonl"
    lines = held_out.read_text(encoding="utf-8").splitlines()[:ASKED]
    rows = [json.loads(line) for line in lines]
    before = answers("hina-4m", rows)
    command = [sys.executable, "-m", "aift_ray.train"]
    command += ["--config", str(ROOT / "examples" / "preference.yaml")]
    command += ["--train-file", str(ROWS / "preferences.jsonl"), "--eval-file", str(held_out)]
    command += ["--output-dir", str(OUTPUT), "--overwrite", *sys.argv[1:]]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)
    summary = json.loads((OUTPUT / "summary.json").read_text(encoding="utf-8"))
    after = answers(str(OUTPUT / "model"), rows)
    print(f"\nof {len(rows)} held-out sentences, asked before and after:")
    print(f"  polite answers    {share(before):6.1%} -> {share(after):6.1%}")
    accuracies = (summary["eval_accuracy_before"], summary["eval_accuracy"])
    print("  margin accuracy   {:6.1%} -> {:6.1%}".format(*accuracies))
    for row, one, two in list(zip(rows, before, after, strict=True))[:SHOWN]:
        print(f"\n  asked     {row['input']}\n  before    {one}\n  after     {two}")
    print(f"\nall files are in {OUTPUT}")


def answers(model: str, rows: list[dict[str, str]]) -> list[str]:
    """Greedy answers of a model or adapter folder."""
    from aift_ray import JapaneseModel

    asked: Any = JapaneseModel(model)
    return [
        asked.generate_japanese(
            row["instruction"], row["input"], max_new_tokens=48, do_sample=False
        )
        for row in rows
    ]


def share(said: list[str]) -> float:
    """Of answers that end politely."""
    return sum(text.strip().endswith(POLITE) for text in said) / len(said)


if __name__ == "__main__":
    main()
