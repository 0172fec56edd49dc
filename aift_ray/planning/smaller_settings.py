"""Settings with which a run needs less memory, those that change least first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aift_ray.config.plan_config import PlanConfig

_SHORTEST = 256


def smaller(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """Changes by memory that they save, each on top of those before; the global batch stays."""
    changes: dict[str, Any] = {}
    if not config.gradient_checkpointing:
        changes = {"gradient_checkpointing": True}
        yield changes
    if config.activation_checkpointing == "selective":
        changes = {"activation_checkpointing": "full"}
        yield changes
    together = config.rollout_batch_size // 2 if config.objective == "grpo" else 0
    # those of one prompt are generated together
    while together >= config.num_generations:
        changes = changes | {"rollout_batch_size": together}
        yield changes
        together //= 2
    size, steps = config.batch_size, config.gradient_accumulation_steps
    for fewer in (n for n in range(size - 1, 0, -1) if not size % n):
        changes = changes | {
            "batch_size": fewer,
            "gradient_accumulation_steps": steps * size // fewer,
        }
        yield changes
    savings = list(_savings(config))
    yield from (changes | saving for saving in savings)
    length = config.sequence_length // 2
    least = config.max_completion_length + 2 if config.objective == "grpo" else 0
    while length >= max(_SHORTEST, least):
        yield changes | {"sequence_length": length}
        yield from (changes | saving | {"sequence_length": length} for saving in savings)
        length //= 2


def _savings(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """Smaller states of the optimizer, then activations in host memory, then both."""
    states = list(_smaller_states(config))
    yield from states
    if config.backend != "deepspeed" and not config.activation_offloading:
        hosted = {"activation_offloading": True}
        yield hosted
        yield from (state | hosted for state in states)


def _smaller_states(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """Moments in 8 bits, then weights in bf16 as well, then moments in pages of the host."""
    if config.method != "full" or config.optimizer != "adamw":
        return
    yield {"optimizer": "adamw_8bit"}
    yield {"optimizer": "adamw_8bit", "bf16_stochastic_round": True}
    yield {"optimizer": "paged_adamw_8bit", "bf16_stochastic_round": True}
