"""Two workers generate and train what one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.runs import curve, spawn


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one(generating: Callable[..., Any], tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {
        "lora": {},
        "full, with a reference": {
            "method": "full",
            "grpo__beta": 0.1,
            "grpo__num_iterations": 2,
            "training__learning_rate": 1e-3,
            "training__max_steps": 3,
        },
        "split": {"grpo__steps_per_generation": 8, "grpo__dynamic_sampling_rounds": 1},
    }
    both: dict[str, Any] = {}
    for name, how in ways.items():
        config = generating(training__batch_size=2, lora__lora_dropout=0.0, **how)
        both[name] = config.model_dump(mode="json")
    path = tmp_path / "configs.json"
    path.write_text(json.dumps(both), "utf-8")
    found = spawn(path, 2)
    for name, how in ways.items():
        alone = curve(generating(training__batch_size=4, **how), tmp_path / name)
        np.testing.assert_allclose(found[name], alone, rtol=2e-5, atol=2e-6, err_msg=name)
