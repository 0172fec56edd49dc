"""What `aift-ray plan` tells: tables for people, JSON for scripts. Needs neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aift_ray.config import PlanConfig
from aift_ray.config.preference_config import answers_of, further_forwards
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.config_stats import Numbers, numbers_of
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Support
from aift_ray.planning import train_plan
from aift_ray.planning.memory_parts import GIB
from aift_ray.planning.plan_command import tokens_of
from aift_ray.planning.serve_plan import Served, served
from aift_ray.planning.train_plan import GpuMachine, StrategyPlan
from aift_ray.utils.text_table import aligned, command_lines, terminal_width, wrapped

METHODS = ("full", "lora", "qlora")
_SHOWN = {"optimizer": "AdamW", "activations": "activ.", "communication": "NCCL"}
_LEFT_OUT = ("host", "copied")
_COMMAND = "  aift-ray "
_BASIS = {
    False: "Everything is computed, nothing measured",
    True: "Everything is computed, from rates that were measured",
}


def run(config: PlanConfig) -> int:
    """Plan, and print it; the exit status.

    Raises:
        UserError: the model, or a length that it does not take.
    """
    numbers = numbers_of(config.model)
    if numbers.context and config.sequence_length > numbers.context:
        what = f"{config.sequence_length} is not allowed: the model takes at most {numbers.context}"
        remedy = f"use --sequence-length {numbers.context}"
        raise ConfigError([Problem("sequence_length", f"{what} tokens", remedy)])
    ways = _trained(config, numbers)
    held = served(config, numbers.config, numbers.shape)
    if config.as_json:
        found = as_data(config, numbers, ways, held)
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        width = terminal_width()
        for line in _lines(config, numbers, ways, held, width):
            lines = command_lines(line, width) if _COMMAND in line else wrapped(line, width)
            print("\n".join(lines))
    return 0


def _trained(config: PlanConfig, numbers: Numbers) -> list[StrategyPlan]:
    seen = family_support.table().get(str(numbers.config["model_type"]))
    # what was not measured is measured before a run
    packed = seen is None or (isinstance(seen[1], Support) and seen[1].packed)
    return train_plan.trained(config, numbers.config, numbers.shape, packed)


def as_data(
    config: PlanConfig, numbers: Numbers, ways: list[StrategyPlan], servers: list[Served]
) -> dict[str, Any]:
    """All of it; memory in bytes."""
    machine, best = GpuMachine.of(config), train_plan.best(ways)
    return {
        "model": config.model,
        "parameters": numbers.shape.parameters,
        "source": numbers.source,
        "method": config.method,
        "objective": config.objective,
        "gpu": asdict(machine.card),
        "gpus": machine.gpus,
        "gpu_memory": machine.room,
        "host_memory": machine.host,
        "tokens_per_micro_step": tokens_of(config),
        "best": best.strategy if best else None,
        "strategies": [_way_data(config, way) for way in ways],
        "serving": [asdict(server) for server in servers],
    }


def _way_data(config: PlanConfig, way: StrategyPlan) -> dict[str, Any]:
    speed = way.speed
    return {
        "strategy": way.strategy,
        "fits": way.fits,
        "memory": way.memory and asdict(way.memory) | {"total": way.memory.total},
        "phase": way.phase or None,
        "phases": dict(way.phases),
        "host_memory": way.host,
        "limit": way.limit,
        "tokens_per_second": speed and speed.tokens_per_second,
        "hours": speed and speed.hours(config.tokens),
        "seconds_of_a_step": speed and dict(speed.seconds),
        "nearest": dict(way.nearest),
        "command": way.command or None,
    }


def _lines(
    config: PlanConfig,
    numbers: Numbers,
    ways: list[StrategyPlan],
    servers: list[Served],
    width: int | None = None,
) -> list[str]:
    machine, best = GpuMachine.of(config), train_plan.best(ways)
    card = machine.card
    host = f", {machine.host / GIB:.0f} GiB of host memory" if machine.host else ""
    source = "measured" if card.measured else "data sheet"
    lines = [
        f"{config.model}: {numbers.shape.parameters:,} parameters ({numbers.source})",
        f"{machine.gpus} x {card.name}, {machine.room / GIB:.1f} GiB each{host}; "
        f"{card.tflops:.4g} TFLOPS, {card.bandwidth:.4g} GB/s, "
        f"{'from the host' if card.measured else 'PCIe'} {card.pcie:.4g} GB/s ({source})",
        f"{config.method}, {config.gradient_accumulation_steps} micro-steps a worker of "
        f"{_micro_step(config)} tokens",
        *_compared(config),
        f"{_BASIS[card.measured]}: memory in GiB a card, speed an estimate.",
        "",
        *aligned(_table(config, ways), width),
        *_by_phase(config, ways),
        "",
    ]
    lines += _what_to_type(config, numbers, ways, best)
    return [*lines, "", *_serving(config, machine, servers, width)]


def _micro_step(config: PlanConfig) -> str:
    pairs = "pair" if config.batch_size == 1 else "pairs"
    units = f" {pairs} x 2 answers" if answers_of(config.objective) == "pair" else ""
    tokens = f"{config.sequence_length} = {tokens_of(config):,}"
    return f"{config.batch_size}{units} x {tokens}"


def _compared(config: PlanConfig) -> list[str]:
    """What the objective adds to the work of a step."""
    number = further_forwards(config.objective)
    if config.objective == "sft":
        return []
    found = f"objective {config.objective}"
    if config.objective == "grpo":
        tokens = f"{config.max_completion_length} tokens of each row"
        reference = ", and a forward pass for the reference" if config.beta else ""
        return [f"{found}: the time includes the generation of {tokens}{reference}"]
    if not number:
        return [f"{found}: no reference model"]
    passes = "1 forward pass" if number == 1 else f"{number} forward passes"
    kl = " and the KL" if number > 1 else ""
    return [f"{found}: the time includes {passes} over each row for the reference{kl}"]


def _table(config: PlanConfig, ways: list[StrategyPlan]) -> list[list[str]]:
    needs = [way.memory for way in ways if way.memory]
    names = [name for name in vars(needs[0]) if name not in _LEFT_OUT] if needs else []
    names = [name for name in names if any(getattr(need, name) for need in needs)]
    head = ["strategy", "fits", "tokens/s", f"h for {config.tokens / 1e6:g}M", "in all"]
    head += [*(_SHOWN.get(name, name) for name in names), "host", "what limits it"]
    rows = [head]
    for way in ways:
        if way.memory is None or way.speed is None:
            rows.append([way.strategy, "-", *[""] * (len(head) - 3), way.limit])
            continue
        sizes = [way.memory.total, *(getattr(way.memory, name) for name in names)]
        figures = [f"{size / GIB:.1f}" if size else "" for size in sizes]
        speed = way.speed
        rate = [f"{speed.tokens_per_second:,.0f}", f"{speed.hours(config.tokens):,.1f}"]
        at = f" (while it {way.phase}s)" if way.phase not in ("", "step") else ""
        host = f"{way.host / GIB:.1f}" if way.host else ""
        fits = "yes" if way.fits else "no"
        rows.append([way.strategy, fits, *rate, *figures, host, way.limit + at])
    return rows


def _by_phase(config: PlanConfig, ways: list[StrategyPlan]) -> list[str]:
    """What a run that also generates needs while it does which."""
    if config.objective != "grpo":
        return []
    return [
        f"{way.strategy}: " + ", ".join(f"{name} {b / GIB:.1f}" for name, b in way.phases.items())
        for way in ways
        if way.phases
    ]


def _what_to_type(
    config: PlanConfig, numbers: Numbers, ways: list[StrategyPlan], best: StrategyPlan | None
) -> list[str]:
    if best:
        return [f"the fastest that fits, {best.strategy}:", f"  {best.command}"]
    lines = ["no strategy fits as it is. What does:"]
    for way in ways:
        if way.nearest:
            changes = ", ".join(f"{n} {str(value).lower()}" for n, value in way.nearest.items())
            lines += [f"  {way.strategy} with {changes}:", f"    {way.command}"]
    for method in METHODS[METHODS.index(config.method) + 1 :]:
        other = train_plan.with_method(config, method)
        found = train_plan.best(_trained(other, numbers))
        if found:
            lines += [f"  {method}, {found.strategy}:", f"    {found.command}"]
    return lines if len(lines) > 1 else ["no strategy fits: use more or larger cards"]


def _serving(
    config: PlanConfig, machine: GpuMachine, servers: list[Served], width: int | None
) -> list[str]:
    head = ["serving", "cards", "weights", "KiB a token", f"requests of {config.sequence_length}"]
    engines = ("vllm", "transformers")
    head += ["vllm, 1 at once", "16 at once", "transformers, 1", "16 at once"]
    rows = [head]
    for server in servers:
        rates = [_rate(server.rates, engine, number) for engine in engines for number in (1, 16)]
        figures = [str(server.cards), f"{server.weights / GIB:.1f}", f"{server.token / 1024:g}"]
        rows.append([f"{server.bits} bits", *figures, f"{server.requests:,}", *rates])
    lines = aligned(rows, width)
    if machine.gpus > 1:
        lines.append("(of one replica)")
    commands = [f"  {server.command}" for server in servers if server.command]
    return ["tokens/s by engine and number of answers made at once:", *lines, *commands]


def _rate(rates: Mapping[str, Mapping[int, float]], engine: str, rows: int) -> str:
    found = rates.get(engine, {}).get(rows)
    return f"{found:,.0f}" if found else "-"
