"""Rows of prompts, and a reward file, for tests of generated completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REWARDS = '''
import hashlib
import time


def text_of(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


def wanted(prompts, completions, answer, **columns):
    """As many characters as the row wants."""
    return [-abs(len(text_of(c)) - int(a)) / 8 for c, a in zip(completions, answer)]


def digest(prompts, completions, **columns):
    """A number that any change of the text changes."""
    found = [hashlib.sha256(text_of(c).encode()).digest()[0] / 255 for c in completions]
    return found


def nothing(prompts, completions, **columns):
    return [0.0] * len(completions)


def broken(prompts, completions, **columns):
    raise ValueError("no such thing")


def hangs(prompts, completions, **columns):
    time.sleep(600)
'''


def write_rewards(folder: Path) -> Path:
    """The reward file in a folder."""
    file = folder / "rewards_of_tests.py"
    file.write_text(REWARDS, "utf-8")
    return file


def prompts(number: int, offset: int = 0) -> list[dict[str, Any]]:
    """Rows of prompts of uneven length, every third as plain text."""
    found = []
    for i in range(offset, offset + number):
        text = f"{i}番目の言葉を{'とても' * (i % 4)}大きな声で言ってください。"
        prompt: Any = text if i % 3 == 2 else [{"role": "user", "content": text}]
        found.append({"prompt": prompt, "answer": i % 7 + 3})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON Lines of rows."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path
