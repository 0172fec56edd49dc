"""Answers are compared as in one process, whoever holds the model, and a run goes on exactly."""

from __future__ import annotations

from pathlib import Path

from tests import parity
from tests.conftest import write_rows

# one of each kind; the table of `make parity` has them all
QUICK = [
    ("ddp", "kto lora", "fp32", "concat"),
    ("fsdp", "dpo full", "fp32", "fill"),
    ("tensor", "dpo lora", "fp32", "concat"),
    ("pipeline", "dpo lora", "fp32", "concat"),
]


def test_two_workers_compare_what_one_process_compares(tmp_path: Path, tiny_model: Path) -> None:
    found = parity.compare(QUICK, tmp_path, tiny_model, write_rows(tmp_path / "rows.jsonl", 22))
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}
