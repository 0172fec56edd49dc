"""Learning-rate schedules: their names, and which settings act on which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.training_config import TrainingConfig

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_min_lr",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "wsd",
    "warmup_stable_decay",
    "WarmupLR",
    "WarmupDecayLR",
]
# of adapters, where none is given: ten times that of all weights, as TRL's documentation has it
ADAPTER_RATE = 2e-4
WSD = ("wsd", "warmup_stable_decay")
OF_DEEPSPEED = ("WarmupLR", "WarmupDecayLR")
_FALLS_TO_THE_END = ("linear", "cosine", "cosine_with_min_lr", *WSD)


def contradictions(training: TrainingConfig) -> list[Problem]:
    """Settings of a schedule that do not act on the one chosen.

    Args:
        training: a TrainingConfig.
    """
    found, name = [], training.lr_scheduler
    if training.min_lr_ratio and name not in _FALLS_TO_THE_END:
        what = f"does not act on {name}, which has no lowest rate"
        remedy = f"leave it out, or use --training.lr_scheduler {_FALLS_TO_THE_END[1]}"
        found.append(Problem("training.min_lr_ratio", what, remedy))
    if name == "cosine_with_min_lr" and not training.min_lr_ratio:
        what = "needs the lowest rate"
        found.append(Problem(f"training.lr_scheduler {name}", what, "give --training.min_lr_ratio"))
    if training.decay_ratio is not None and name not in WSD:
        what = f"acts on wsd only, and the schedule is {name}"
        remedy = "leave it out, or use --training.lr_scheduler wsd"
        found.append(Problem("training.decay_ratio", what, remedy))
    return found
