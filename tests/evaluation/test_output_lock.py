"""One evaluation at a time writes to a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from aift_ray.errors import ConfigError
from aift_ray.evaluation.sample_log import Record


def test_a_second_evaluation_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    first = Record(tmp_path / "results.json", {})
    with pytest.raises(ConfigError, match="another evaluation is writing to"):
        Record(tmp_path / "other.json", {})
    first.close()
    Record(tmp_path / "results.json", {}).close()
