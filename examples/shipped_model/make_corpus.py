"""Writes what the base model is pretrained on: `text.jsonl` and `chat.jsonl`.

The base must know the words and forms of both styles and how to copy, but not the task of
`keitai/`: a sentence appears in one style only, chosen by its hash; no chat row converts a style;
and no sentence with a held-out core appears at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from copy_tasks import Material, Pools, chat_row
from make_instructions import EVAL_ROWS, TRAIN_ROWS, choose, write_rows
from make_instructions import SEED as TASK_SEED
from sentences import Grammar, is_held_out

SEED = 7
SYNTHETIC_SENTENCES = 40_000
CHAT_ROWS = 30_000
FRAGMENT_CHARACTERS = 60


def is_modern(text: str) -> bool:
    """Whether the kana spelling is the present one: past forms write っ small."""
    small = len(re.findall("っ[てた]", text))
    return small > 0 and small >= len(re.findall("つ[てた]", text))


def read_aozora(path: Path) -> list[str]:
    """All texts of a JSON Lines file, those in modern spelling first."""
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
    return sorted(texts, key=lambda text: not is_modern(text))


def fragments(texts: list[str]) -> list[str]:
    """Whole sentences of modern texts, 6 to 60 characters, without brackets or odd marks."""
    found = []
    for text in texts:
        for line in text.splitlines() if is_modern(text) else ():
            for sentence in re.findall("[^。]+。", line.replace("　", "")):
                clean = not re.search("[「」『』（）()［］〔〕※…―—]", sentence)
                if clean and 6 <= len(sentence) <= FRAGMENT_CHARACTERS:
                    found.append(sentence)
    return sorted(set(found))


def styled_sentences(seed: int) -> Iterator[Material]:
    """New synthetic sentences without end, each in one style only."""
    seen: set[str] = set()
    for sentence in Grammar(seed):
        if sentence.plain in seen or is_held_out(sentence.core):
            continue
        seen.add(sentence.plain)
        polite = hashlib.sha256(sentence.plain.encode()).digest()[0] % 2 == 1
        yield Material(
            text=sentence.polite if polite else sentence.plain,
            last=sentence.last[polite],
            words=sentence.words,
            polite=polite,
        )


def paragraphs(sentences: list[Material], generator: random.Random) -> list[str]:
    """Paragraphs of 3 to 8 sentences of one style."""
    made = []
    for polite in (False, True):
        texts = [sentence.text for sentence in sentences if sentence.polite == polite]
        start = 0
        while start < len(texts):
            size = generator.randint(3, 8)
            made.append("".join(texts[start : start + size]))
            start += size
    generator.shuffle(made)
    return made


def chat_rows(pools: Pools, count: int, generator: random.Random) -> list[dict[str, str]]:
    """Chat rows; an edit that happens to make a sentence of eval.jsonl is thrown away."""
    held = choose(TASK_SEED, TRAIN_ROWS, EVAL_ROWS)[1]
    forbidden = {text for sentence in held for text in (sentence.plain, sentence.polite)}
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        row = chat_row(pools, generator)
        if forbidden.isdisjoint(row.values()):
            rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Writes both files; the same corpus writes the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help='rows {"text": ...}')
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    generator = random.Random(SEED)
    aozora = read_aozora(options.corpus)
    source = styled_sentences(SEED)
    synthetic = [next(source) for _ in range(SYNTHETIC_SENTENCES)]
    texts = aozora + paragraphs(synthetic, generator)
    write_rows(options.output / "text.jsonl", [{"text": text} for text in texts])
    literary = [Material(text=text, last="", words=(), polite=False) for text in fragments(aozora)]
    pools = (synthetic, literary or synthetic)
    rows = chat_rows(pools, CHAT_ROWS, generator)
    write_rows(options.output / "chat.jsonl", rows)
    print(f"text rows {len(texts)}, of which Aozora {len(aozora)}; chat rows {len(rows)}")


if __name__ == "__main__":
    main()
