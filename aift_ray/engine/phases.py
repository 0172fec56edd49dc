"""What a run does before its first step and after its last: told to whoever shows its progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.engine.metrics import write_json

if TYPE_CHECKING:
    from aift_ray.parallel.group import Group

STAGE = ".stage.json"
LOADING, TRYING = "loading the model", "trying the longest micro-batch"
REFERENCE = "computing the log-probabilities of the reference model"
EVALUATING, FIRST_STEP = "evaluating the untrained model", "taking the first step"
SAVING = "saving the trained model"


def tell(output: Path, group: Group, what: str) -> None:
    """Say what begins; worker 0 speaks for all."""
    if group.is_main_process:
        write_json(output / STAGE, {"stage": what, "since": time.time()})
