"""What each piece of a model costs a run: memory where it lies, and work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from aift_ray.config import RunConfig
from aift_ray.models.families.experts import expert_parameters
from aift_ray.models.linear_layers import features
from aift_ray.models.lora.target_modules import adapted_layers
from aift_ray.models.split import Pieces
from aift_ray.planning.memory_parts import held_bytes, logit_bytes, moments
from aift_ray.planning.partition import ModelPart

# a trained weight in fp32, and its gradient
_TRAINED = 8


def weighed(
    model: PreTrainedModel, pieces: Pieces, config: RunConfig, width: int, tokens: int, share: float
) -> list[ModelPart]:
    """The pieces of a model, with or without its weights, in order. Everything is computed.

    Args:
        width: bytes of a weight that is not trained, and of an activation.
        tokens: of a micro-batch.
        share: of the tokens that are supervised: the output layer sees no others.
    """
    full, again = config.method == "full", config.training.gradient_checkpointing
    size, vocabulary = _sizes(model)
    # forward, gradient of the inputs, gradient of the weights, and the forward once more
    times = 2 + full + again
    found = []
    for name in pieces.names:
        module = model.get_submodule(name)
        held = _held(name, name in pieces.blocks, config, model, width)
        if name in pieces.blocks:
            inner, linear = block_sizes(module)
            experts = _Experts.of(model, name)
            kept = size if again else 10 * size + 4 * inner + experts.states
            copies = 0 if again else experts.copies(config)
            held += (tokens * kept + copies) * width
            found.append(ModelPart(name, held, (linear + experts.taken) * times))
        elif name == pieces.head:
            held = 0 if pieces.tied else held
            work = vocabulary * size * share * (2 + full)
            shared = pieces.embeddings if pieces.tied else None
            logits = min(tokens, 256) * vocabulary * logit_bytes(width)
            found.append(ModelPart(name, held + logits, work, shared))
        else:
            found.append(ModelPart(name, held, 0.0))
    return found


def working_bytes(
    model: PreTrainedModel, pieces: Pieces, config: RunConfig, width: int, tokens: int
) -> int:
    """What each device needs beside its pieces: a block computed anew, a weight dequantized."""
    block = model.get_submodule(pieces.blocks[0])
    size, _ = _sizes(model)
    largest = max(inputs * outputs for inputs, outputs in _linear(block).values())
    experts = max((_Experts.of(model, name) for name in pieces.blocks), key=lambda e: e.numbers)
    again = tokens * (10 * size + 4 * block_sizes(block)[0] + experts.states)
    again += experts.copies(config)
    # of an adapter, the gradient of what it was added to; and what it was added to
    once = experts.numbers * _adapts_experts(config) * (1 + (config.base_bits == 4))
    once += largest * bool(config.base_bits)
    return (again * config.training.gradient_checkpointing + once) * width


@dataclass(frozen=True)
class _Experts:
    """Numbers of the experts of a block; all 0 where it has none.

    Attributes:
        numbers: weights of all.
        taken: of those that a token takes.
        sides: rows and columns of all matrices.
        states: numbers that are kept of a token for the backward pass.
    """

    numbers: int = 0
    taken: float = 0.0
    sides: int = 0
    states: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, block: str) -> _Experts:
        """Those of the block of this name."""
        within = {n: p for n, p in expert_parameters(model).items() if n.startswith(f"{block}.")}
        if not within:
            return cls()
        active = getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1
        numbers = sum(p.numel() for p in within.values())
        each = sum(sum(p.shape[1:]) for p in within.values())
        taken = sum(p.numel() * active / len(p) for p in within.values())
        sides = sum(len(p) * sum(p.shape[1:]) for p in within.values())
        # what goes into each matrix and what comes out of it, and the two halves of a gate
        return cls(numbers, taken, sides, round(active * each * 4 / 3))

    def copies(self, config: RunConfig) -> int:
        """Numbers that are dequantized, or to which adapters are added, for a backward pass."""
        narrow = config.method != "full" and config.base_bits == 4
        return self.numbers * (narrow or _adapts_experts(config))


def _adapts_experts(config: RunConfig) -> bool:
    return config.method != "full" and config.lora.experts


def _sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Width of the hidden states, and size of the vocabulary."""
    vocabulary, size = model.get_output_embeddings().get_parameter("weight").shape
    return size, vocabulary


def block_sizes(block: torch.nn.Module) -> tuple[int, int]:
    """The widest inner state of a block, and the weights of its linear layers."""
    sizes = _linear(block).values()
    return max(outputs for _, outputs in sizes), sum(a * b for a, b in sizes)


def _linear(module: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """{name: (in, out)} of the linear maps in a module."""
    found = ((name, features(layer)) for name, layer in module.named_modules())
    return {name: sizes for name, sizes in found if sizes}


def _held(name: str, block: bool, config: RunConfig, model: PreTrainedModel, width: int) -> int:
    module = model.get_submodule(name)
    weights = sum(p.numel() for p in module.parameters())
    optimizer = config.training.optimizer
    if config.method == "full":
        return weights * _TRAINED + moments(weights, optimizer)[0]
    linear = _linear(module) if block else {}
    numbers, experts = sum(a * b for a, b in linear.values()), _Experts.of(model, name)
    targets = {id(layer) for layer in adapted_layers(model, config.lora).values()}
    adapted = [sizes for name, sizes in linear.items() if id(module.get_submodule(name)) in targets]
    sides = sum(a + b for a, b in adapted) + experts.sides * config.lora.experts
    adapters = config.lora.r * sides
    rest = (weights - numbers - experts.numbers) * width
    # bitsandbytes has no 8 bits for experts
    rest += held_bytes(experts.numbers, width, 4 if config.base_bits == 4 else None)
    trained = adapters * _TRAINED + moments(adapters, optimizer, full=False)[0]
    return rest + held_bytes(numbers, width, config.base_bits) + trained
