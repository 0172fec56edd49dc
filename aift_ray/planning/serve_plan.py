"""A server of a model on given cards: memory, requests at once, speed, and what to type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aift_ray.config.plan_config import PlanConfig
from aift_ray.planning import speed
from aift_ray.planning.kv_cache_size import cached_bytes
from aift_ray.planning.memory_parts import GIB
from aift_ray.planning.model_shape import Shape
from aift_ray.planning.overheads import CONTEXT
from aift_ray.planning.train_plan import GpuMachine

# what a server's steps take beside weights, keys and values; and its default of kept prompts
_WORKING, _PREFIXES = round(0.5 * GIB), 512 * 2**20


@dataclass(frozen=True)
class Served:
    """A server that holds the model in so many bits.

    Attributes:
        cards: that hold it together.
        token: bytes of a token's keys and values.
        requests: of the given length that fit at once; 0: the weights alone don't.
        rates: tokens a second by engine and number of answers at once.
    """

    bits: int
    cards: int
    weights: int
    token: int
    requests: int
    rates: Mapping[str, Mapping[int, float]]
    command: str


def served(config: PlanConfig, numbers: Mapping[str, Any], shape: Shape) -> list[Served]:
    """A server of the model in 16, 8 and 4 bits."""
    machine = GpuMachine.of(config)
    return [_server(config, machine, numbers, shape, bits) for bits in (16, 8, 4)]


def _server(
    config: PlanConfig, machine: GpuMachine, numbers: Mapping[str, Any], shape: Shape, bits: int
) -> Served:
    narrow = bits if bits < 16 else None
    weights, token = shape.weight_bytes(2, narrow), cached_bytes(numbers)
    one, length = max(1, token * config.sequence_length), config.sequence_length
    room = machine.room - CONTEXT - _WORKING
    # vLLM alone puts a model on several cards, and holds it in 8 bits only where its folder is
    cards = 1 if weights < room or bits == 8 else machine.gpus
    left = cards * room - weights - (_PREFIXES if bits == 8 else 0)
    requests = max(0, left // one)
    engines = {"vllm": bits != 8, "transformers": cards == 1}
    rates = {
        engine: {
            rows: speed.decoding(
                shape, machine.card, token * length / 2, rows, narrow, engine == "vllm", cards
            )
            for rows in (1, 16)
            if rows <= requests
        }
        for engine, can in engines.items()
        if can
    }
    words = ["aift-ray serve", f"--model {config.model}"]
    words += [f"--load-in {bits}bit"] if narrow else []
    if cards > 1:
        words.append(f"--engine vllm --vllm.tensor_parallel_size {cards}")
    elif machine.gpus > 1:
        words.append(f"--num-replicas {machine.gpus}")
    command = " ".join(words) if requests else ""
    return Served(bits, cards, weights, token, requests, rates, command)
