"""Writes pairs of a polite and a worse answer: `keitai/preferences{,-eval}.jsonl`.

Every second pair is a hard one: its worse answer is polite, and wrong (買ったです for 買いました).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from make_instructions import (
    DEFAULT_OUTPUT,
    EVAL_ROWS,
    SEED,
    TRAIN_ROWS,
    WORDINGS,
    choose,
    write_rows,
)
from sentences import Sentence

PAIRS, EVAL_PAIRS = 1000, 200


def pair(sentence: Sentence, wording: str, hard: bool) -> dict[str, str]:
    """A row: the polite sentence, and the plain one or a wrong polite one."""
    wrong = f"{sentence.plain.removesuffix('。')}です。"
    return {
        "instruction": wording,
        "input": sentence.plain,
        "chosen": sentence.polite,
        "rejected": wrong if hard and wrong != sentence.polite else sentence.plain,
    }


def main(arguments: list[str] | None = None) -> None:
    """Writes both files; the same seed writes the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    wording = random.Random(options.seed)
    # the sentences of the instruction task, so that what is held out there is held out here
    sets = choose(options.seed, TRAIN_ROWS, EVAL_ROWS)
    names = (("preferences", PAIRS), ("preferences-eval", EVAL_PAIRS))
    for (name, number), sentences in zip(names, sets, strict=True):
        rows = [
            pair(sentence, wording.choice(WORDINGS), at % 2 == 1)
            for at, sentence in enumerate(sentences[:number])
        ]
        write_rows(options.output / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
