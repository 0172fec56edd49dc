"""A mixture of experts: every strategy trains what one process trains."""

from __future__ import annotations

import json
from pathlib import Path

from tests import parity
from tests.conftest import write_rows

CASES = [
    ("ddp", "mixture full", "fp32", "concat"),
    ("ddp", "mixture qlora nf4", "fp32", "recomputed"),
    ("fsdp", "mixture full", "fp32", "recomputed"),
    ("fsdp", "mixture lora", "fp32", "padded"),
    ("fsdp", "mixture qlora nf4", "fp32", "concat"),
    ("zero1", "mixture lora", "fp32", "concat"),
    ("zero2", "mixture qlora nf4", "fp32", "padded"),
    ("pipeline", "mixture full", "fp32", "concat"),
    ("pipeline", "mixture lora", "fp32", "recomputed"),
    ("pipeline", "mixture qlora nf4", "fp32", "concat"),
]


def test_two_workers_train_what_one_process_trains(tiny_mixture: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = parity.compare(CASES, tmp_path, tiny_mixture, rows, tiny_mixture)
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}
    held = [json.loads((tmp_path / f"held{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    whole = held[0]["ddp|mixture qlora nf4|fp32|recomputed"]
    shares = [of["fsdp|mixture qlora nf4|fp32|concat"] for of in held]
    assert sum(shares) == whole, "nothing is held twice, 4-bit experts neither"
    assert max(shares) < 0.51 * whole
