"""Answers are compared as in one process, whoever holds the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import parity
from tests.conftest import write_rows

# the table of `make parity` has them all
QUICK = [
    ("fsdp", "dpo full", "fp32", "fill"),
    ("pipeline", "dpo lora", "fp32", "concat"),
    # weights stay gathered after the pass of the reference, which has no adapters
    ("zero1", "dpo lora", "fp32", "concat"),
]
MORE = [
    ("zero2", "dpo lora", "fp32", "concat"),
    ("ddp", "kto lora", "fp32", "concat"),
    ("ddp", "dpo qlora nf4", "fp32", "padded"),
    ("fsdp", "kto full", "fp32", "concat"),
    ("fsdp", "dpo qlora nf4", "fp32", "concat"),
    ("fsdp", "reward lora", "fp32", "padded"),
    ("zero1", "orpo full", "fp32", "recomputed"),
    ("zero2", "reward full", "fp32", "fill"),
    ("tensor", "dpo lora", "fp32", "concat"),
    ("tensor", "orpo full", "fp32", "recomputed"),
    ("tensor", "kto full", "fp32", "padded"),
    ("pipeline", "kto full", "fp32", "fill"),
    ("pipeline gpipe", "orpo lora", "fp32", "padded"),
]


def compared(cases: list[tuple[str, str, str, str]], folder: Path, model: Path) -> None:
    found = parity.compare(cases, folder, model, write_rows(folder / "rows.jsonl", 22))
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}


def test_two_workers_compare_what_one_process_compares(tmp_path: Path, tiny_model: Path) -> None:
    compared(QUICK, tmp_path, tiny_model)


@pytest.mark.slow
def test_every_strategy_compares_what_one_process_compares(
    tmp_path: Path, tiny_model: Path
) -> None:
    compared(MORE, tmp_path, tiny_model)
