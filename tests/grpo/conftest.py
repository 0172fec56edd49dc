"""Settings of runs that generate completions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.grpo.rollout_rows import prompts, write, write_rewards


@pytest.fixture
def generating(configure: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A RunConfig of objective grpo on the tiny model; dotted names override."""

    def make(**values: Any) -> Any:
        rows = write(tmp_path / "prompts.jsonl", prompts(12))
        common = {
            "objective": "grpo",
            "method": "lora",
            "grpo__reward": [f"{write_rewards(tmp_path)}:digest"],
            "grpo__num_generations": 4,
            "grpo__max_completion_length": 8,
            "grpo__rollout_batch_size": 8,
            "data__train_files": [str(rows)],
            "data__cache_dir": str(tmp_path / "cache"),
            "training__batch_size": 4,
            "training__gradient_accumulation_steps": 4,
            "training__max_steps": 2,
            "training__learning_rate": 1e-2,
        }
        return configure(**(common | values))

    return make
