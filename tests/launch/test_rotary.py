"""Rotary frequencies that depend on the longest text of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.errors import ConfigError
from aift_ray.runs.prepare import prepare
from tests.helpers.tiny_families import make

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}


def test_texts_that_would_change_each_other_are_refused_by_their_length(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    longrope = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
    folder = make("phi3", tmp_path / "model", **longrope)
    with pytest.raises(ConfigError, match="rotary") as caught:
        prepare(configure(model=str(folder)), tmp_path / "run", 1, False, None)
    assert "--data.sequence_length 32 or less" in caught.value.problems[0].remedy
    config = configure(model=str(folder), data__sequence_length=32)
    assert prepare(config, tmp_path / "run", 1, False, None).job.support.packed
