"""What a user is told of a run's settings before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.runs.prepare import prepare


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("full", {"lora__r": 4, "lora__lora_dropout": 0.1}, "lora.r, lora.lora_dropout"),
        ("full", {}, ""),
        ("lora", {"lora__r": 4}, ""),
    ],
)
def test_settings_of_adapters_beside_full_training_are_named(
    method: str, given: dict[str, Any], told: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    config = configure(method=method, **given)
    found = [w for w in prepare(config, tmp_path, 1, False, None).warnings if "no effect" in w]
    assert found == (
        [f"{told} has no effect: method full trains all weights, without adapters"] if told else []
    )
