"""The numbers of a decoder-only architecture, and the parameters that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# names of the number of experts, each of a family's own
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Shape:
    """Numbers of a decoder-only architecture, as its config.json names them.

    Attributes:
        feed_forward: width of a feed-forward layer; in a mixture, of one expert.
        experts, active: of a block; those that a token takes.
        shared: width of the expert that every token takes; 0: there is none.
        dense_layers, dense_width: blocks of a mixture that have no experts, and their width.
        biases: of a block of a mixture.
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
    active: int = 1
    shared: int = 0
    dense_layers: int = 0
    dense_width: int = 0
    biases: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the numbers from a configuration; KeyError where it is of another kind."""
        heads = config["num_attention_heads"]
        shape = cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            feed_forward=config.get("moe_intermediate_size") or config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
            experts=next((config[name] for name in _EXPERTS if config.get(name)), 1),
        )
        return shape._of_mixture(config) if shape.experts > 1 else shape

    def _of_mixture(self, config: Mapping[str, Any]) -> Shape:
        shared = config.get("shared_expert_intermediate_size")
        shared = shared or (config.get("n_shared_experts") or 0) * self.feed_forward
        query, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        biases = 0
        if config.get("model_type") == "gpt_oss":
            expert = 2 * self.feed_forward + self.hidden + 1
            biases = query + 2 * kv + self.hidden + self.heads + self.experts * expert
        return replace(
            self,
            active=config.get("num_experts_per_tok") or 1,
            shared=shared,
            dense_layers=_dense_layers(config),
            dense_width=config.get("intermediate_size") or self.feed_forward,
            biases=biases,
        )

    @property
    def column_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of a block whose outputs are heads or channels."""
        query, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.hidden, query), (self.hidden, kv), (self.hidden, kv)]
        return attention + [(self.hidden, self._linear_width)] * 2 * bool(self._linear_width)

    @property
    def row_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of those whose inputs are heads or channels."""
        down = [(self._linear_width, self.hidden)] * bool(self._linear_width)
        return [(self.heads * self.head_size, self.hidden), *down]

    @property
    def _linear_width(self) -> int:
        """Width of the feed-forward layer that is made of linear layers, in most blocks."""
        return self.shared if self.experts > 1 else self.feed_forward

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of one block; the experts are none."""
        return self.column_shapes + self.row_shapes

    @property
    def expert_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the weights of one expert."""
        if self.experts == 1:
            return []
        return [(self.hidden, 2 * self.feed_forward), (self.feed_forward, self.hidden)]

    @property
    def block_experts(self) -> int:
        """Parameters of all experts of one block."""
        return self.experts * sum(a * b for a, b in self.expert_shapes)

    @property
    def states(self) -> int:
        """Numbers that a block keeps of a token for its backward pass."""
        routed = self.active * (3 * self.hidden + 4 * self.feed_forward) * (self.experts > 1)
        return 10 * self.hidden + 4 * self._linear_width + routed

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, but for biases of most."""
        blocks = self.linear_parameters + self.expert_parameters + self.layers * self.loose
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return blocks + tables + self.hidden

    @property
    def loose(self) -> int:
        """Parameters of a block beside its linear layers and experts: norms, router, biases."""
        return 2 * self.hidden + self.biases + self.hidden * self.experts * (self.experts > 1)

    def weight_bytes(self, width: int, bits: int | None = None, experts: bool = True) -> int:
        """Bytes of the weights alone.

        Args:
            width: bytes of a weight.
            bits: of a weight of the linear layers, where those are quantized.
            experts: in 4 bits they are quantized too.
        """
        narrow = self.linear_parameters if bits else 0
        narrow += self.expert_parameters if bits == 4 and experts else 0
        return (self.parameters - narrow) * width + narrow * (bits or 0) // 8

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks: those that are quantized."""
        dense = self.dense_layers * 3 * self.hidden * (self.dense_width - self.shared)
        return self.layers * sum(a * b for a, b in self.linear_shapes) + dense

    @property
    def expert_parameters(self) -> int:
        """Parameters of the experts of all blocks: quantized in 4 bits alone."""
        return (self.layers - self.dense_layers) * self.block_experts

    def adapter_parameters(self, rank: int, experts: bool = False) -> int:
        """Parameters of LoRA adapters on every linear layer of the blocks.

        Args:
            experts: each of them is adapted too.
        """
        linear = self.layers * sum(a + b for a, b in self.linear_shapes)
        stacked = (self.layers - self.dense_layers) * self.experts
        each = sum(a + b for a, b in self.expert_shapes)
        return rank * (linear + stacked * each * experts)


def _dense_layers(config: Mapping[str, Any]) -> int:
    """Blocks of a mixture without experts."""
    kinds = config.get("mlp_layer_types")
    if kinds:
        return int(kinds.count("dense"))
    if "first_k_dense_replace" in config or "num_dense_layers" in config:
        first = config.get("first_k_dense_replace") or config.get("num_dense_layers")
        return min(first or 0, int(config["num_hidden_layers"]))
    dense, step = set(config.get("mlp_only_layers") or ()), config.get("decoder_sparse_step") or 1
    return sum(i in dense or (i + 1) % step > 0 for i in range(config["num_hidden_layers"]))
