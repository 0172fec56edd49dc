"""What a user should know of a run before it starts, and can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aift_ray.config import RunConfig
from aift_ray.data.batch_plan import BatchPlan

if TYPE_CHECKING:
    from aift_ray.runs.prepare import Preparation

# tokens of a micro-step from which a GPU computes longer than Python launches
_BUSY = 1024


def of_run(run: Preparation, workers: int, gpu: bool) -> list[str]:
    """All of it."""
    plan, small = run.plan, list[str]()
    if gpu and isinstance(plan, BatchPlan):
        small = _small_steps(run.job.config, plan, workers)
    return [*_settings(run), *small]


def _settings(run: Preparation) -> list[str]:
    """Settings, rows and templates that do something else than may be thought."""
    config, found = run.job.config, list(run.prepared.warnings)
    training = config.training
    if training.warmup_steps > run.steps:
        found.append(
            f"training.warmup_steps {training.warmup_steps} covers all {run.steps} steps: the "
            f"learning rate never reaches {training.learning_rate:g}"
        )
    adapters = _of_adapters(config)
    if adapters:
        given = ", ".join(f"lora.{name}" for name in adapters)
        found.append(f"{given} has no effect: method full trains all weights, without adapters")
    plain = config.method != "full" and config.objective == "sft"
    if plain and training.learning_rate <= 3e-5:
        found.append(
            f"training.learning_rate {training.learning_rate:g} is usual for full fine-tuning; "
            "LoRA usually wants about ten times as much"
        )
    if run.held_out == 0:
        for name in ("exact_match_rows", "early_stopping_patience", "load_best"):
            if getattr(training, name):
                found.append(f"training.{name} does nothing without evaluation data")
    if run.encoder.used_fallback:
        found.append("the tokenizer has no chat template: the Alpaca form (### 指示:) is used")
    if run.encoder.generation_gap:
        found.append(
            "the template's generation prompt differs from what the rows hold at the same place"
        )
    if config.objective not in ("sft", "reward", "kto"):
        margins = np.count_nonzero(~np.isnan(run.prepared.rows("train").scores))
        if margins:
            found.append(
                f"{margins:,} rows hold `margin`, which objective {config.objective} does not use: "
                "reward does"
            )
    return found


def _of_adapters(config: RunConfig) -> list[str]:
    """Settings of adapters that were given, where none are trained."""
    if config.method != "full":
        return []
    plain = type(config.lora)()
    given = [name for name, value in config.lora if value != getattr(plain, name)]
    # objective grpo sets a dropout of 0 itself, which is that of full training too
    return [name for name in given if name != "lora_dropout" or config.lora.lora_dropout]


def _small_steps(config: RunConfig, plan: BatchPlan, workers: int) -> list[str]:
    """A note where a GPU waits for Python, since a micro-step holds few tokens."""
    held = plan.tokens_per_micro_step(workers // config.parallel.workers_per_replica)
    steps = config.training.gradient_accumulation_steps
    able = config.parallel.strategy != "pipeline" and steps > 1
    if held >= _BUSY or not able or config.data.tokens_per_micro_batch:
        return []
    return [
        f"a micro-step holds {held:.0f} tokens on average, few for a GPU: "
        f"--data.tokens_per_micro_batch {2 * _BUSY} fills it, and the global batch stays"
    ]
