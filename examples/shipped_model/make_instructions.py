"""Writes the instruction task 常体→敬体: `aift_ray/data/assets/keitai/{train,eval}.jsonl`."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from sentences import Grammar, Sentence, is_held_out

SEED = 20240501
TRAIN_ROWS, EVAL_ROWS = 3000, 400
WORDINGS = (
    "次の文を敬体（です・ます調）に書き換えてください。",
    "次の常体の文を、です・ます調に直してください。",
    "次の文を丁寧な「です・ます」の文にしてください。",
    "この文を敬体に変えてください。",
)
DEFAULT_OUTPUT = Path(__file__).resolve().parents[2] / "aift_ray" / "data" / "assets" / "keitai"


def choose(seed: int, train: int, evaluation: int) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences for training and for evaluation, every core once, in the order they were made.

    A predicate is evaluated only where training has it too, with other words or in other forms.
    """
    trained: list[Sentence] = []
    held: list[Sentence] = []
    seen: set[tuple[str, str, str]] = set()
    predicates: set[str] = set()
    for sentence in Grammar(seed):
        if sentence.core in seen:
            continue
        predicate = sentence.core[1]
        if not is_held_out(sentence.core) and len(trained) < train:
            trained.append(sentence)
            predicates.add(predicate)
        elif is_held_out(sentence.core) and predicate in predicates and len(held) < evaluation:
            held.append(sentence)
        else:
            continue
        seen.add(sentence.core)
        if len(trained) == train and len(held) == evaluation:
            break
    return trained, held


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes JSON Lines in UTF-8 with LF."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> None:
    """Writes both files; the same seed writes the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    wording = random.Random(options.seed)
    splits = choose(options.seed, TRAIN_ROWS, EVAL_ROWS)
    for name, sentences in zip(("train", "eval"), splits, strict=True):
        rows = [
            {
                "instruction": wording.choice(WORDINGS),
                "input": sentence.plain,
                "output": sentence.polite,
            }
            for sentence in sentences
        ]
        write_rows(options.output / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
