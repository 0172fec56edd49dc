"""How much memory a worker needs, part by part. Every figure is computed, none measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aift_ray.config import RunConfig

GIB = 2**30
_FLOAT32 = 4
# positions whose logits are in memory at once, in fp32: the logits and their gradient
_LOGIT_POSITIONS, _LOGIT_COPIES = 256, 3
# bits of a quantized weight: of 4 bits, 64 weights share a scale of 8 bits, 256 scales one in fp32
_HELD_BITS = {4: 4 + 8 / 64 + 32 / (64 * 256), 8: 8.0}
# bytes of a position's logits by token of the vocabulary
LOGIT_BYTES = _FLOAT32 * _LOGIT_COPIES


def held_bytes(weights: int, width: int, bits: int | None) -> int:
    """Bytes of weights that are not trained, `width` each, or quantized to `bits` bits."""
    return round(weights * _HELD_BITS[bits] / 8) if bits else weights * width


@dataclass(frozen=True)
class Shape:
    """Numbers of a decoder-only architecture, as its config.json names them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    tied: bool
    experts: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the numbers from a configuration; KeyError where it is of another kind."""
        heads = config["num_attention_heads"]
        experts = config.get("num_experts") or config.get("num_local_experts") or 1
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            feed_forward=config.get("moe_intermediate_size") or config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
            experts=experts,
        )

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of one block."""
        query, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.hidden, query), (self.hidden, kv), (self.hidden, kv)]
        feed_forward = [(self.hidden, self.feed_forward)] * 2 + [(self.feed_forward, self.hidden)]
        return [*attention, (query, self.hidden), *feed_forward * self.experts]

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, but for biases."""
        block = sum(a * b for a, b in self.linear_shapes) + 2 * self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * block + tables + self.hidden

    def weight_bytes(self, width: int, bits: int | None = None) -> int:
        """Bytes of the weights alone.

        Args:
            width: bytes of a weight.
            bits: of a weight of the linear layers, where those are quantized.
        """
        linear = self.linear_parameters if bits else 0
        return (self.parameters - linear) * width + linear * (bits or 0) // 8

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks: those that are quantized."""
        return self.layers * sum(a * b for a, b in self.linear_shapes)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters on every linear layer of the blocks."""
        return self.layers * sum(rank * (a + b) for a, b in self.linear_shapes)


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker by part, computed for data parallel training with AdamW."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of the parts; the device's own overhead comes on top."""
        return sum(vars(self).values())

    @property
    def parts(self) -> str:
        """The parts in words."""
        return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in vars(self).items())


def memory(
    shape: Shape,
    method: str,
    rank: int,
    tokens: int,
    frozen_bytes: int,
    checkpointing: bool,
    base_bits: int | None = None,
    strategy: str = "ddp",
    workers: int = 1,
    whole: int = 0,
) -> Memory:
    """Memory of a worker whose micro-batch holds `tokens` tokens.

    Args:
        rank: LoRA rank; unused for method full.
        frozen_bytes: bytes of a weight that is not trained (2 in bf16, 4 in fp32); activations
            have the same width.
        checkpointing: whether activations are recomputed block by block.
        base_bits: bits of a weight of the blocks' linear layers, 4 or 8; None: not quantized.
        strategy, workers: what is shared out over how many; of a pipeline, over its stages, whose
            first has about as many activations in flight as a whole model keeps.
        whole: weights trained as a whole beside the adapters, a copy of those of the base.
    """
    full = method == "full"
    trained = shape.parameters if full else shape.adapter_parameters(rank) + whole
    frozen = 0 if full else shape.parameters * frozen_bytes
    working = 0
    width = frozen_bytes if not full else 2
    bits = _HELD_BITS[base_bits] if base_bits else width * 8
    if base_bits:
        held = shape.linear_parameters
        frozen += round(held * bits / 8) - held * frozen_bytes
        # one layer at a time is brought back to the width of the computation
        working = max(a * b for a, b in shape.linear_shapes) * frozen_bytes
    block = tokens * width * (10 * shape.hidden + 4 * shape.feed_forward)
    kept = shape.layers * tokens * width * shape.hidden
    weights, gradients = frozen + trained * _FLOAT32, trained * _FLOAT32
    shares = 1 if strategy in ("ddp", "model_parallel") else workers
    if shares > 1 and strategy != "pipeline":
        # gathered besides: all blocks, or two of them, the one in use and the next
        blocks = 1.0 if strategy in ("zero1", "zero2") else min(1, 2 / shape.layers)
        loose = (shape.parameters - shape.linear_parameters) * width
        weights = weights // shares + round(blocks * shape.linear_parameters * bits / 8) + loose
    return Memory(
        weights=weights // shares if strategy == "pipeline" else weights,
        gradients=gradients if strategy == "zero1" else gradients // shares,
        optimizer=trained * 2 * _FLOAT32 // shares,
        activations=working + (kept + block if checkpointing else shape.layers * block),
        logits=min(tokens, _LOGIT_POSITIONS) * shape.vocabulary * _FLOAT32 * _LOGIT_COPIES,
    )


def remedy(config: RunConfig) -> str:
    """The nearest setting that needs less; batch x accumulation stays equal where it can."""
    training = config.training
    if not training.gradient_checkpointing:
        return "--training.gradient_checkpointing true"
    if training.batch_size > 1:
        size = next(
            n for n in range(training.batch_size // 2, 0, -1) if not training.batch_size % n
        )
        steps = training.gradient_accumulation_steps * training.batch_size // size
        return f"--training.batch_size {size} --training.gradient_accumulation_steps {steps}"
    if config.method == "full":
        return "--method lora"
    if config.trained_as == "lora":
        return "--method qlora"
    return f"--data.sequence_length {config.data.sequence_length // 2}"
