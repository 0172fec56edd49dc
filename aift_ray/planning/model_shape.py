"""The numbers of a decoder-only architecture, and the parameters that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# model types whose matrices are those that `Shape` computes
FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Counted:
    """What was counted in a model of any layout.

    Attributes:
        linear: (in, out) of the linear layers of all blocks.
        adapted: (in, out) of the layers that get adapters.
        loose: all other parameters of the language model, its tables among them.
        beside: parameters that are never trained, such as those of other towers.
        experts: (experts, in, out) of the stacked weights of all blocks of a mixture.
        active: experts that a token takes.
        adapts_experts: whether the experts are among the layers that get adapters.
    """

    linear: tuple[tuple[int, int], ...]
    adapted: tuple[tuple[int, int], ...]
    loose: int
    beside: int = 0
    experts: tuple[tuple[int, int, int], ...] = ()
    active: int = 1
    adapts_experts: bool = False


@dataclass(frozen=True)
class Shape:
    """Numbers of a decoder-only architecture, as its config.json names them.

    Attributes:
        extra: biases and further norms of a block, beside its matrices and two norms.
        counted: where the parameters were counted: they follow from that alone.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    tied: bool
    experts: int = 1
    extra: int = 0
    counted: Counted | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the numbers from a configuration; KeyError where it is of another kind."""
        heads, kind = config["num_attention_heads"], config.get("model_type", "")
        experts = config.get("num_experts") or config.get("num_local_experts") or 1
        shape = cls(
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
        return replace(shape, extra=_extra(shape, kind, config))

    @property
    def column_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of a block whose outputs are heads or channels."""
        query, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.hidden, query), (self.hidden, kv), (self.hidden, kv)]
        return attention + [(self.hidden, self.feed_forward)] * 2 * self.experts

    @property
    def row_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of those whose inputs are heads or channels."""
        down = [(self.feed_forward, self.hidden)] * self.experts
        return [(self.heads * self.head_size, self.hidden), *down]

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of one block."""
        return self.column_shapes + self.row_shapes

    @property
    def largest(self) -> int:
        """Parameters of the largest linear layer."""
        return max(a * b for a, b in (self.counted.linear if self.counted else self.linear_shapes))

    @property
    def adapted_inputs(self) -> float:
        """Numbers that go into the adapted linear layers of a block, of a token."""
        if self.counted:
            return sum(a for a, _ in self.counted.adapted) / self.layers
        return sum(a for a, _ in self.linear_shapes)

    def kept_outputs(self, adapts: bool) -> float:
        """Numbers that selective recomputation keeps of a token in a block.

        They are the outputs of attention, and of every other matrix product: those for queries,
        values and gates, and the last one. Of a counted model the half of all.

        Args:
            adapts: each linear layer has an adapter, whose second product has as many outputs.
        """
        attended = self.heads * self.head_size
        outputs = float(attended + self.kv_heads * self.head_size + self.feed_forward + self.hidden)
        if self.counted:
            outputs = sum(out for _, out in self.counted.linear) / self.layers / 2
        return attended + outputs * (1 + adapts)

    def cache_bytes(self, width: int) -> int:
        """Bytes of a token's keys and values in all layers; of a counted model at most.

        Args:
            width: bytes of a number.
        """
        return 2 * self.layers * self.kv_heads * self.head_size * width

    @property
    def expert_parameters(self) -> int:
        """Parameters of the stacked weights of experts, which are no linear layers."""
        return sum(number * a * b for number, a, b in self._stacks)

    @property
    def block_experts(self) -> int:
        """Those of one block that has experts."""
        return round(self.expert_parameters * self._share_of_block)

    @property
    def routed(self) -> int:
        """Numbers that a block keeps of a token for the backward pass of its experts."""
        if not self.counted or not self._stacks:
            return 0
        sides = sum(a + b for _, a, b in self._stacks) * self._share_of_block
        # what goes into each matrix and what comes out of it, and the two halves of a gate
        return round(self.counted.active * sides * 4 / 3)

    @property
    def _share_of_block(self) -> float:
        # two stacks, or more, in each; some blocks may have none
        number = len(self._stacks)
        return max(2, -(-number // self.layers)) / max(number, 1)

    @property
    def adapts_experts(self) -> bool:
        """Whether the experts get adapters."""
        return self.counted is not None and self.counted.adapts_experts

    @property
    def _stacks(self) -> tuple[tuple[int, int, int], ...]:
        return self.counted.experts if self.counted else ()

    @property
    def loose(self) -> int:
        """Parameters of the language model beside the linear layers and experts of the blocks."""
        return self.parameters - self.beside - self.linear_parameters - self.expert_parameters

    @property
    def beside(self) -> int:
        """Parameters beside the language model, which are never trained."""
        return self.counted.beside if self.counted else 0

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        if self.counted:
            inside = self.linear_parameters + self.expert_parameters
            return inside + self.counted.loose + self.counted.beside
        block = sum(a * b for a, b in self.linear_shapes) + 2 * self.hidden + self.extra
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * block + tables + self.hidden

    def weight_bytes(self, width: int, bits: int | None = None, experts: bool = True) -> int:
        """Bytes of the weights alone.

        Args:
            width: bytes of a weight.
            bits: of a weight of the linear layers, where those are quantized.
            experts: in 4 bits they are quantized too.
        """
        narrow = self.linear_parameters if bits else 0
        narrow += self.expert_parameters if bits == 4 and experts else 0
        if bits == 8 and not self.counted and self.experts > 1:
            # not told apart from linear layers
            narrow -= self.layers * self.experts * 3 * self.hidden * self.feed_forward
        return (self.parameters - narrow) * width + narrow * (bits or 0) // 8

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks: those that are quantized."""
        if self.counted:
            return sum(a * b for a, b in self.counted.linear)
        return self.layers * sum(a * b for a, b in self.linear_shapes)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters; where not counted, on every linear layer of the blocks."""
        if self.counted:
            return rank * sum(a + b for a, b in self.counted.adapted)
        return self.layers * sum(rank * (a + b) for a, b in self.linear_shapes)


def _extra(shape: Shape, kind: str, config: Mapping[str, Any]) -> int:
    """Parameters of a block that are neither of its matrices nor of its two norms."""
    query, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    found = 0
    if kind == "qwen2":
        found += query + 2 * kv
    elif config.get("attention_bias"):
        found += query + 2 * kv + shape.hidden
    if config.get("mlp_bias"):
        found += 2 * shape.feed_forward + shape.hidden
    if kind in ("gemma2", "gemma3_text"):
        found += 2 * shape.hidden
    if kind in ("gemma3_text", "qwen3"):
        found += 2 * shape.head_size
    return found
