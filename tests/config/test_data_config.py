"""Settings of the data that are refused."""

from __future__ import annotations

import pytest

from aift_ray.config import DataConfig
from aift_ray.errors import ConfigError


def test_a_column_is_named_for_one_key() -> None:
    told = "columns: instruction=質問,output=質問 is not allowed: 質問 is named for two keys"
    with pytest.raises(ConfigError, match=told):
        DataConfig(columns={"instruction": "質問", "output": "質問"})
    assert DataConfig(columns={"instruction": "質問", "output": "回答"}).columns
