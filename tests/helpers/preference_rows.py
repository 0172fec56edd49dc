"""Rows of two answers, and of answers with a label, of uneven length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pairs(number: int, offset: int = 0) -> list[dict[str, Any]]:
    """Pairs of conversations in TRL's form."""
    return [
        {
            "prompt": [
                {
                    "role": "user",
                    "content": f"{i}番目の言葉を{'とても' * (i % 5)}大きな声で言ってください。",
                }
            ],
            "chosen": [_said(f"はい、{'花鳥風月'[: 1 + i % 4]}です。" + "以上。" * (i % 7))],
            "rejected": [_said(f"{'花鳥風月'[: 1 + i % 4]}だよ。" + "終わり。" * (i % 3))],
        }
        for i in range(offset, offset + number)
    ]


def labelled(number: int, offset: int = 0) -> list[dict[str, Any]]:
    """The same answers, one a row, two of three with the label true."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen" if i % 3 else "rejected"],
            "label": bool(i % 3),
        }
        for i, row in enumerate(pairs(number, offset))
    ]


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path
