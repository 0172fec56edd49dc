"""What each piece of a model costs a run: memory where it lies, and work."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from aift_ray.config import RunConfig
from aift_ray.models.linear import features
from aift_ray.models.pieces import Pieces
from aift_ray.models.targets import adapted_layers
from aift_ray.planning.layout import Piece
from aift_ray.planning.memory import LOGIT_BYTES, held_bytes, moments

# a trained weight in fp32, and its gradient
_TRAINED = 8


def weighed(
    model: PreTrainedModel, pieces: Pieces, config: RunConfig, width: int, tokens: int, share: float
) -> list[Piece]:
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
        held = _held(module, name in pieces.blocks, config, model, width)
        if name in pieces.blocks:
            inner, linear = block_sizes(module)
            kept = size if again else 10 * size + 4 * inner
            found.append(Piece(name, held + tokens * width * kept, linear * times))
        elif name == pieces.head:
            held = 0 if pieces.tied else held
            work = vocabulary * size * share * (2 + full)
            shared = pieces.embeddings if pieces.tied else None
            logits = min(tokens, 256) * vocabulary * LOGIT_BYTES
            found.append(Piece(name, held + logits, work, shared))
        else:
            found.append(Piece(name, held, 0.0))
    return found


def working_bytes(
    model: PreTrainedModel, pieces: Pieces, config: RunConfig, width: int, tokens: int
) -> int:
    """What each device needs beside its pieces: a block computed anew, a weight dequantized."""
    block = model.get_submodule(pieces.blocks[0])
    size, _ = _sizes(model)
    largest = max(inputs * outputs for inputs, outputs in _linear(block).values())
    again = tokens * width * (10 * size + 4 * block_sizes(block)[0])
    return again * config.training.gradient_checkpointing + largest * width * bool(config.base_bits)


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


def _held(
    module: torch.nn.Module, block: bool, config: RunConfig, model: PreTrainedModel, width: int
) -> int:
    weights = sum(p.numel() for p in module.parameters())
    optimizer = config.training.optimizer
    if config.method == "full":
        return weights * _TRAINED + moments(weights, optimizer)[0]
    linear = _linear(module) if block else {}
    numbers = sum(a * b for a, b in linear.values())
    targets = {id(layer) for layer in adapted_layers(model, config.lora).values()}
    adapted = [sizes for name, sizes in linear.items() if id(module.get_submodule(name)) in targets]
    adapters = sum(config.lora.r * (a + b) for a, b in adapted)
    rest = (weights - numbers) * width
    trained = adapters * _TRAINED + moments(adapters, optimizer, full=False)[0]
    return rest + held_bytes(numbers, width, config.base_bits) + trained
