"""Why the workers of a run had to be started again: a file of the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

# a line a failure, a list of what each worker said
FAILURES = ".failures.jsonl"


def read_failures(path: Path) -> list[str]:
    """Why the group of workers failed, an entry a failure; a half-written last one is left out."""
    if not path.is_file():
        return []
    whole = [line for line in path.read_text("utf-8").splitlines() if line.endswith("]")]
    return ["; ".join(json.loads(line)) for line in whole]


def add_failure(path: Path, each: list[str]) -> None:
    """Add a failure of the group.

    Args:
        each: what each worker that failed has said.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(each, ensure_ascii=False) + "\n")
