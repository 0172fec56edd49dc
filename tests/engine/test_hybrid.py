"""Layers that carry state beside attention: every strategy trains what one process trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import parity
from tests.conftest import write_rows
from tests.helpers.runs import started, stepped
from tests.helpers.tiny_families import make_hybrid

Configure = Callable[..., Any]

CASES = [
    ("ddp", "hybrid full", "fp32", "concat"),
    ("fsdp", "hybrid full", "fp32", "recomputed"),
    ("fsdp", "hybrid qlora nf4", "fp32", "concat"),
    ("zero1", "hybrid lora", "fp32", "concat"),
    ("pipeline", "hybrid full", "fp32", "concat"),
    ("pipeline", "hybrid lora", "fp32", "recomputed"),
]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hybrid(tmp_path_factory.mktemp("models") / "hybrid")


def test_two_workers_train_what_one_process_trains(hybrid: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = parity.compare(CASES, tmp_path, hybrid, rows)
    assert {case: apart for case, apart in found.items() if max(apart) > parity.bound(case)} == {}


def test_any_packing_trains_the_same_steps(
    hybrid: Path, configure: Configure, tmp_path: Path
) -> None:
    lines = {
        packing: [
            (line["loss"], line["grad_norm"])
            for line in stepped(
                started(configure(model=str(hybrid), data__packing=packing), tmp_path / packing)
            )
        ]
        for packing in ("concat", "fill", "false")
    }
    assert lines["concat"] == lines["fill"] == lines["false"]
