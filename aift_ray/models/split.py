"""A model in the pieces that a device or a stage may hold, and a model of some of them alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from aift_ray.errors import ModelError
from aift_ray.models.decoder import causal_model, decoder_blocks, decoder_of
from aift_ray.models.families.refusals import is_llama_like, refusal
from aift_ray.models.transformers_compat import IGNORED_ON_LOAD


@dataclass(frozen=True)
class Pieces:
    """Names of the modules that hold all weights of a model, in the order of a forward pass.

    Attributes:
        tied: the output layer's weight is that of the embeddings.
    """

    embeddings: str
    blocks: list[str]
    norm: str
    head: str
    tied: bool

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.embeddings, *self.blocks, self.norm, self.head]


def pieces_of(model: nn.Module) -> Pieces:
    """The pieces of a model, with or without its weights.

    Raises:
        ModelError: it has weights in other places, or blocks that share theirs, so that what
            happens between two blocks is not known.
    """
    inner = causal_model(model)
    decoder, blocks = decoder_of(inner), decoder_blocks(inner)
    table, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    known = {id(blocks), id(table)}
    rest = [m for m in decoder.children() if id(m) not in known and [*m.parameters()]]
    names = {id(module): name for name, module in inner.named_modules()}
    # before weights are loaded, two that are going to be one are two
    tied = f"{names[id(head)]}.weight" in inner.all_tied_weights_keys
    held = [table, *blocks, *rest, *([] if tied else [head])]
    numbers = [id(p) for module in held for p in module.parameters()]
    outside = {id(p) for p in inner.parameters()} - {*numbers, id(head.weight)}
    plain = len(rest) == 1 and all(p.ndim == 1 for p in rest[0].parameters())
    what = ""
    if outside or not plain or len(numbers) != len(set(numbers)):
        what = "it is more than embeddings, blocks, a norm and an output layer, and can't be split"
    elif getattr(inner.config.get_text_config(), "num_kv_shared_layers", 0):
        what = "its last blocks use the keys and values of earlier ones, and can't be split off"
    if what:
        kind = inner.config.model_type
        raise ModelError([refusal(kind, what, "use --strategy ddp or fsdp", is_llama_like)])
    return Pieces(
        names[id(table)],
        [names[id(block)] for block in blocks],
        names[id(rest[0])],
        names[id(head)],
        tied,
    )


class StandIn(nn.Module):
    """In place of a module that lies elsewhere: gives its input, or what came from there.

    Attributes:
        received: the output of the stage before, where this stands for all of it.
    """

    def __init__(self, block: int | None = None) -> None:
        super().__init__()
        self._block = block
        self.received: torch.Tensor | None = None

    def forward(
        self,
        hidden: torch.Tensor,
        *args: object,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """(batch, tokens, width), unchanged."""
        if past_key_values is not None and self._block is not None:
            # a cache counts its tokens block by block
            token = hidden.new_zeros((hidden.shape[0], 1, hidden.shape[1], 1))
            past_key_values.update(token, token, self._block)
        return hidden if self.received is None else self.received


def part_class(model_class: type[PreTrainedModel], held: Collection[str]) -> type[PreTrainedModel]:
    """`model_class` whose models hold the pieces `held` alone, so that only those are loaded.

    Beside an output layer that shares their weight, the embeddings are held too.
    """

    def build(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        _drop(self, held)

    names = {
        "__init__": build,
        "__module__": model_class.__module__,
        # the weights of other parts are no surprise
        IGNORED_ON_LOAD: [r"."],
    }
    # saved files bear the class's name
    made: type[PreTrainedModel] = type(model_class.__name__, (model_class,), names)
    return made


def _drop(model: PreTrainedModel, held: Collection[str]) -> None:
    pieces = pieces_of(model)
    kept = {*held, *([pieces.embeddings] if pieces.tied and pieces.head in held else ())}
    for name in pieces.names:
        if name not in kept:
            block = pieces.blocks.index(name) if name in pieces.blocks else None
            model.set_submodule(name, StandIn(block))
    if pieces.head not in held:
        model.all_tied_weights_keys = {}


@contextmanager
def outlined(model: PreTrainedModel, outline: PreTrainedModel) -> Iterator[None]:
    """Modules without weights, those of `outline`, in place of the stand-ins for a while.

    What is added to all blocks meanwhile draws the same random numbers as in a whole model.
    """
    away = {name: m for name, m in model.named_modules() if isinstance(m, StandIn)}
    for name in away:
        model.set_submodule(name, outline.get_submodule(name))
    try:
        yield
    finally:
        for name, stand_in in away.items():
            model.set_submodule(name, stand_in)


def whole_like(model: nn.Module, outline: PreTrainedModel) -> nn.Module:
    """A whole model without weights, with the settings and adapters of a part of it.

    Saved files are described by it: PEFT leaves out adapters of blocks that a model does not have.

    Args:
        model: the part.
        outline: the whole of it, without weights or adapters.
    """
    inner = causal_model(model)
    outline.to(inner.dtype)  # type: ignore[arg-type]
    outline.config, outline.generation_config = inner.config, inner.generation_config
    if inner is model:
        return outline
    from peft import get_peft_model

    configurations: Any = model.peft_config
    adapted: nn.Module = get_peft_model(outline, configurations["default"])
    return adapted
