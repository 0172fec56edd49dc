"""The learning rate of each step: a function of the settings, the step and the number of steps.

Schedules have the names and the curves of transformers. Only the warm-up differs: transformers
takes its first step with a rate of 0, which trains nothing; here the first step has the rate that
transformers gives to the second one, and step `warmup_steps` has the full rate. Those of DeepSpeed
are as its engine steps them, at a rate of 0 twice.
"""

from __future__ import annotations

import math

from aift_ray.config import TrainingConfig
from aift_ray.config.lr_schedules import ADAPTER_RATE, OF_DEEPSPEED, WSD

# of wsd, where none is given
DECAY_RATIO = 0.1
# of inverse_sqrt without a warm-up, as in transformers
_TIMESCALE = 10_000


def settle(training: TrainingConfig, total: int, adapters: bool) -> str:
    """Give the learning rate and the warm-up their values, where the user has left them out.

    A warm-up of the documented 100 steps would be all of a small run: it is at most a tenth of
    the steps, unless it is asked for. Adapters start at zero and take a higher rate.

    Args:
        total: steps of the whole run.
        adapters: adapters are trained, not all weights.

    Returns:
        the schedule in a line, for the plan.
    """
    given, usual, tenth = set(training.model_fields_set), "", ""
    if adapters and "learning_rate" not in given:
        training.learning_rate, usual = ADAPTER_RATE, " (the default of adapters)"
    if training.warmup_ratio is not None:
        training.warmup_steps = math.ceil(training.warmup_ratio * total)
    elif "warmup_steps" not in given and training.warmup_steps > total // 10:
        training.warmup_steps, tenth = total // 10, " (a tenth of all)"
    name, warmup = training.lr_scheduler, training.warmup_steps
    plural = "s" if warmup > 1 else ""
    rise = f"after {warmup:,} warm-up step{plural}" if warmup else "without warm-up"
    if name in OF_DEEPSPEED and warmup <= 2:
        rise = "with a rate of 0 in the first 2 steps"
    text = f"{training.learning_rate:g}{usual}, {name} {rise}{tenth}"
    if name in WSD:
        text += f", falling in the last {decay_steps(training, total):,} steps"
    least = training.learning_rate * training.min_lr_ratio
    return text + (f", down to {least:g}" if least else "")


def decay_steps(training: TrainingConfig, total: int) -> int:
    """Steps at the end in which the rate of wsd falls; never those of the warm-up."""
    ratio = DECAY_RATIO if training.decay_ratio is None else training.decay_ratio
    return min(math.ceil(ratio * total), max(0, total - training.warmup_steps))


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """Learning rate of the step with index `step` (from 0) of `total`."""
    return config.learning_rate * _factor(config, step, total)


def _factor(config: TrainingConfig, step: int, total: int) -> float:
    """The rate over its peak."""
    name, warmup, least = config.lr_scheduler, config.warmup_steps, config.min_lr_ratio
    if name in OF_DEEPSPEED:
        return _factor_of_deepspeed(name, max(2, warmup), step, total)
    if step < warmup:
        rise = (step + 1) / warmup
        # as in transformers, wsd alone begins at the lowest rate
        return least + (1 - least) * rise if name in WSD else rise
    if name in ("constant", "constant_with_warmup"):
        return 1.0
    if name == "inverse_sqrt":
        timescale = warmup or _TIMESCALE
        return 1.0 / math.sqrt((step + timescale - warmup) / timescale)
    start = warmup
    if name in WSD:
        start = total - decay_steps(config, total)
    progress = min(1.0, max(0, step - start) / max(1, total - start))
    fall = 1 - progress if name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return least + (1 - least) * fall


def _factor_of_deepspeed(name: str, warmup: int, step: int, total: int) -> float:
    """The same as its engine has it (deepspeed 0.19.8), which steps the schedule after the weights.

    Args:
        warmup: steps of the warm-up, of which it makes two at least.
    """
    done = max(0, step - 1)
    if done < warmup:
        return math.log(done + 1) / math.log(warmup)
    if name == "WarmupLR":
        return 1.0
    return max(0.0, (total - done) / max(1, total - warmup))
