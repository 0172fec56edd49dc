"""A run with a DeepSpeed file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.config.run_config import RunConfig


@pytest.fixture
def given(configure: Callable[..., Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """The settings of a run with a file."""

    def make(content: object, **values: Any) -> RunConfig:
        path = tmp_path / "ds_config.json"
        path.write_text(json.dumps(content).replace("NVME", str(tmp_path / "nvme")), "utf-8")
        how = {"parallel__strategy": "zero3", "parallel__backend": "deepspeed", **values}
        return configure(**how, parallel__deepspeed_config=str(path))

    return make
