"""Every way to train a model on given cards: memory, speed, and what to type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aift_ray.config.grpo_config import GENERATING
from aift_ray.config.plan_config import PlanConfig
from aift_ray.config.preference_config import divided_scorer, further_forwards
from aift_ray.config.section import memory_bytes
from aift_ray.errors import ConfigError, Problem
from aift_ray.planning import speed
from aift_ray.planning.gpu_specs import CARDS, Card, of_memory
from aift_ray.planning.kv_cache_size import cached_bytes
from aift_ray.planning.measured_rates import kept
from aift_ray.planning.memory_estimate import memory, phases
from aift_ray.planning.memory_parts import GIB, Memory, Workload
from aift_ray.planning.model_shape import Shape
from aift_ray.planning.plan_command import command, tokens_of
from aift_ray.planning.smaller_settings import smaller
from aift_ray.planning.speed import Speed
from aift_ray.planning.tp_support import unfit

# estimates closer than this say nothing; what sends less is named
_AS_FAST = 0.97
# what some strategies can't have, and what all can
_USUAL = {
    "optimizer": "adamw",
    "bf16_stochastic_round": False,
    "activation_checkpointing": "full",
    "activation_offloading": False,
}


@dataclass(frozen=True)
class GpuMachine:
    """The cards, and what may be used of them.

    Attributes:
        room: bytes of each card.
        host: bytes of host memory; None: not known.
    """

    card: Card
    gpus: int
    room: int
    host: int | None

    @classmethod
    def of(cls, config: PlanConfig) -> GpuMachine:
        """That of the settings.

        Raises:
            ConfigError: what was measured is asked for, and nothing was.
        """
        given = config.gpu_memory and memory_bytes(config.gpu_memory)
        name = config.gpu or (of_memory(given) if given else "a5000")
        card = _measured() if name == "measured" else CARDS[name]
        host = memory_bytes(config.host_memory) if config.host_memory else None
        return cls(card, config.gpus, given or card.bytes, host)


@dataclass(frozen=True)
class StrategyPlan:
    """One strategy on these cards.

    Attributes:
        strategy: with `, offload` where weights and states are in host memory; with `, context`
            where all cards divide the tokens of each row.
        memory: of the fuller card at its peak; None: the strategy can't be.
        phase: when that is.
        phases: bytes of the card in each phase.
        host: bytes of host memory of all workers; with the copy of a checkpoint where one is made.
        limit: what limits it: why it does not fit or can't be, else what takes most of the time.
        nearest: settings with which it fits, where it does not; empty: none was found.
        command: to type, with those settings; "": there is none.
    """

    strategy: str
    memory: Memory | None
    phase: str
    host: int
    fits: bool
    limit: str
    speed: Speed | None = None
    nearest: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    phases: Mapping[str, int] = field(default_factory=dict)


def _measured() -> Card:
    rates = kept()
    if rates is None:
        what = "nothing was measured on this machine"
        raise ConfigError([Problem("gpu", what, "type aift-ray doctor --bench first")])
    return rates.card("bf16")


def trained(
    config: PlanConfig, numbers: Mapping[str, Any], shape: Shape, packed: bool = True
) -> list[StrategyPlan]:
    """Every strategy, in the order in which they send more.

    Args:
        packed: the model's rows are packed, so that cards can divide their tokens.
    """
    return [_way(config, numbers, shape, name) for name in _strategies(config, packed)]


def best(ways: list[StrategyPlan]) -> StrategyPlan | None:
    """The first that fits and is as fast as any, to a few percent; None: none fits."""
    rates = [(way, way.speed.tokens_per_second) for way in ways if way.fits and way.speed]
    most = max((rate for _, rate in rates), default=0.0)
    return next((way for way, rate in rates if rate >= _AS_FAST * most), None)


def _strategies(config: PlanConfig, packed: bool) -> list[str]:
    if config.backend == "deepspeed":
        stages = ["zero1", "zero2", "zero3"]
        offload = [] if config.method == "qlora" else [f"{stage}, offload" for stage in stages]
        return [*stages, *offload]
    offload = [] if config.method == "qlora" else ["fsdp, offload"]
    if config.gpus == 1:
        return ["ddp", *offload]
    shared = ["zero1", "zero2", "fsdp", *offload]
    divides = packed and config.objective == "sft"
    divided = ["ddp, context", "fsdp, context"] if divides else []
    return ["ddp", *shared, *divided, "tensor", "pipeline", "model_parallel"]


def _way(
    config: PlanConfig, numbers: Mapping[str, Any], shape: Shape, strategy: str
) -> StrategyPlan:
    refused = _refused(config, numbers, shape, strategy)
    if refused:
        found = next(_without(config, numbers, shape, strategy), {})
        typed = _typed(config, strategy, found)
        return StrategyPlan(strategy, None, "", 0, False, refused, None, found, typed)
    machine, work = GpuMachine.of(config), _work(config, strategy)
    parts = max(phases(shape, work), key=lambda part: max(need.total for need in part.values()))
    phase = max(parts, key=lambda name: parts[name].total)
    need = replace(parts[phase], host=max(each.host for each in parts.values()))
    lack = _lack(need, machine, work)
    rows, steps = config.sequence_length, config.gradient_accumulation_steps
    fast = speed.training(shape, work, machine.card, rows, steps)
    if config.objective == "grpo":
        together = min(config.batch_size * steps, config.rollout_batch_size)
        length = config.max_completion_length
        cached = cached_bytes(numbers) * (rows - length / 2)
        rate = speed.decoding(shape, machine.card, cached, together, work.base_bits, False, 1)
        fast = speed.with_generation(fast, config.batch_size * steps * length / rate)
    by_phase = {name: each.total for name, each in parts.items()}
    if not lack:
        host = (need.host + _copy(need, machine, work)) * work.workers
        typed = command(config, strategy, machine.room)
        return StrategyPlan(
            strategy, need, phase, host, True, fast.limit, fast, {}, typed, by_phase
        )
    found = next(_nearer(config, numbers, shape, strategy), {})
    typed = _typed(config, strategy, found)
    host = need.host * work.workers
    return StrategyPlan(strategy, need, phase, host, False, lack, fast, found, typed, by_phase)


def _refused(config: PlanConfig, numbers: Mapping[str, Any], shape: Shape, strategy: str) -> str:
    """Why a strategy can't train the model; "": it can."""
    name, _, how = strategy.partition(", ")
    if config.gpus == 1 and name.startswith("zero") and how != "offload":
        return "ZeRO shares a model out over GPUs, and there is one: give --gpus 2 or more"
    split, offloads = name == "tensor", how == "offload"
    if config.optimizer != "adamw" and (split or offloads):
        return f"{config.optimizer} is not possible with it"
    if config.bf16_stochastic_round and (
        split or offloads or name in ("pipeline", "model_parallel")
    ):
        return "bf16_stochastic_round is not possible with it"
    if split or name in ("pipeline", "model_parallel"):
        if config.activation_checkpointing == "selective":
            return "activation_checkpointing selective is not possible with it"
        if config.activation_offloading:
            return "activation_offloading is not possible with it"
    if config.objective == "grpo" and strategy not in GENERATING:
        return "objective grpo generates with a whole model on each card"
    divided = divided_scorer(config.objective, strategy)
    if divided:
        return divided
    if strategy in ("pipeline", "model_parallel") and config.gpus > shape.layers:
        return f"{config.gpus} parts can't be made of {shape.layers} blocks"
    if strategy != "tensor":
        return ""
    text = dict(numbers)
    problems = unfit(text, config.gpus, [], config.method == "qlora")
    return problems[0].what if problems else ""


def _work(config: PlanConfig, strategy: str) -> Workload:
    name, _, how = strategy.partition(", ")
    alone, divided = name == "model_parallel", how == "context"
    tokens = tokens_of(config)
    completions = config.rollout_batch_size if config.objective == "grpo" else 0
    return Workload(
        "full" if config.method == "full" else "lora",
        config.r,
        -(-tokens // config.gpus) if divided else tokens,
        2,
        config.gradient_checkpointing,
        4 if config.method == "qlora" else None,
        name,
        1 if alone else config.gpus,
        model_parallel_size=config.gpus if name in ("tensor", "pipeline", "model_parallel") else 1,
        offload=how == "offload",
        optimizer=config.optimizer,
        dropout=config.lora_dropout > 0 and config.objective != "grpo",
        gpu=True,
        copies=True,
        # a model with a score makes no logits
        targets=0 if config.objective == "reward" else None,
        forwards=further_forwards(config.objective) + (config.beta > 0),
        answer_tokens=completions * config.sequence_length,
        completions=completions,
        reference=config.beta > 0 and config.method == "full",
        by_deepspeed=config.backend == "deepspeed",
        rounded=config.bf16_stochastic_round,
        selective=config.activation_checkpointing == "selective",
        activations_in_host=config.activation_offloading,
        row_tokens=tokens if divided else 0,
    )


def _copy(need: Memory, machine: GpuMachine, work: Workload) -> int:
    """Bytes of a worker's copy of a checkpoint, which is made where host memory holds it."""
    both = (need.host + need.copied) * work.workers
    return need.copied if machine.host is None or both <= machine.host else 0


def _lack(need: Memory, machine: GpuMachine, work: Workload) -> str:
    """What is missing for a way to fit; "": nothing."""
    if need.total > machine.room:
        return f"{(need.total - machine.room) / GIB:.1f} GiB too little on the card"
    host = need.host * work.workers
    if machine.host is not None and host > machine.host:
        return f"{(host - machine.host) / GIB:.1f} GiB too little in the host"
    return ""


def _nearer(
    config: PlanConfig, numbers: Mapping[str, Any], shape: Shape, strategy: str
) -> Iterator[dict[str, Any]]:
    """Settings with which a strategy fits, those that change least first."""
    machine = GpuMachine.of(config)
    for changes in smaller(config):
        changed = config.model_copy(update=changes)
        if _refused(changed, numbers, shape, strategy):
            continue
        work = _work(changed, strategy)
        if not _lack(memory(shape, work), machine, work):
            yield changes


def _without(
    config: PlanConfig, numbers: Mapping[str, Any], shape: Shape, strategy: str
) -> Iterator[dict[str, Any]]:
    """Settings with which a strategy fits that can't be with those given, the fewest first."""
    given = {name: value for name, value in _USUAL.items() if getattr(config, name) != value}
    machine = GpuMachine.of(config)
    for usual in [*({name: value} for name, value in given.items()), given]:
        changed = config.model_copy(update=usual)
        if not usual or _refused(changed, numbers, shape, strategy):
            continue
        work = _work(changed, strategy)
        if not _lack(memory(shape, work), machine, work):
            yield usual
        yield from (usual | more for more in _nearer(changed, numbers, shape, strategy))


def _typed(config: PlanConfig, strategy: str, changes: dict[str, Any]) -> str:
    """The command with `changes`; "": there are none."""
    room = GpuMachine.of(config).room
    return command(config.model_copy(update=changes), strategy, room) if changes else ""


def with_method(config: PlanConfig, method: str) -> PlanConfig:
    """The same by another method, which has no weights of its own in bf16 unless it is full."""
    rounded = config.bf16_stochastic_round and method == "full"
    return config.model_copy(update={"method": method, "bf16_stochastic_round": rounded})
