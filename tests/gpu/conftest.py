"""All tests of this folder need a GPU."""

from __future__ import annotations

import pytest
import torch


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test, and skip it where there is no GPU."""
    item.add_marker(pytest.mark.gpu)
    if not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip("there is no CUDA device"))
