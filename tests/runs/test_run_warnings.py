"""What a user is told before a run starts, and can act on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.runs.prepare import prepare
from tests.helpers.preference_rows import pairs, write

Configure = Callable[..., Any]


def told(config: Any, folder: Path, gpu: bool = False) -> str:
    return "\n".join(prepare(config, folder, 1, gpu, None).warnings)


def test_a_margin_is_not_dropped_without_a_word(configure: Configure, tmp_path: Path) -> None:
    rows = pairs(8)
    rows[3]["margin"] = 0.5
    file = write(tmp_path / "pairs.jsonl", rows)
    given = {"data__train_files": [str(file)]}
    note = "1 rows hold `margin`"
    assert note in told(configure(objective="dpo", **given), tmp_path)
    assert note not in told(configure(objective="reward", **given), tmp_path)


@pytest.mark.parametrize("gpu", [False, True])
def test_few_tokens_are_told_where_a_gpu_would_wait(
    configure: Configure, tmp_path: Path, gpu: bool
) -> None:
    spread = {"training__batch_size": 1, "training__gradient_accumulation_steps": 8}
    assert ("--data.tokens_per_micro_batch" in told(configure(**spread), tmp_path, gpu)) is gpu
    filled = configure(data__tokens_per_micro_batch=100, **spread)
    assert "--data.tokens_per_micro_batch" not in told(filled, tmp_path, gpu)
