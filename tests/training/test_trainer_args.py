"""What the trainers refuse before they read anything."""

from __future__ import annotations

from typing import Any

import pytest

from aift_ray import Callback
from aift_ray.errors import ArgumentError
from aift_ray.training.trainer_args import TrainerOptions


@pytest.mark.parametrize("given", [Callback(), "abc", iter(())])
def test_callbacks_that_are_no_list_are_refused(given: Any) -> None:
    name = type(given).__name__
    with pytest.raises(ArgumentError, match=f"callbacks: is {name}, expected a list"):
        TrainerOptions(given)
