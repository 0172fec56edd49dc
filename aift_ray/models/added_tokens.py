"""New tokens of a model: in its tokenizer, and as rows of its embeddings and its output layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class AddedTokens:
    """New tokens, and what their embeddings begin as.

    Attributes:
        tokens, ids: each with its id.
        pieces: of each the ids that the tokenizer made of it before, of whose embeddings the
            mean is taken.
        rows: of the embeddings, that the model needs.
        alone: only the rows of the new tokens are trained.
    """

    tokens: list[str]
    ids: list[int]
    pieces: list[list[int]]
    rows: int
    alone: bool

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put the tokens into a tokenizer; one that has them stays as it is."""
        from tokenizers import AddedToken

        new: Any = [AddedToken(token, normalized=False, special=False) for token in self.tokens]
        tokenizer.add_tokens(new)


def planned(
    tokenizer: PreTrainedTokenizerBase, tokens: list[str], rows: int, alone: bool
) -> AddedTokens:
    """The tokens as they are going to be; the tokenizer has them afterwards.

    Args:
        rows: of the model's embeddings.
    """
    pieces = [tokenizer.encode(token, add_special_tokens=False) for token in tokens]
    found = AddedTokens(tokens, [], pieces, rows, alone)
    found.extend(tokenizer)
    ids: Any = tokenizer.convert_tokens_to_ids(tokens)
    return replace(found, ids=list(ids), rows=max(rows, max(ids) + 1))


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of a model's embeddings."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def grow(model: PreTrainedModel, rows: int) -> None:
    """Give embeddings and output layer at least so many rows; new ones are the mean of all."""
    import torch

    before = embedding_rows(model)
    if before >= rows:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for table in _tables(model):
            table[before:] = table[:before].mean(0, dtype=torch.float32).to(table.dtype)


def begin(model: PreTrainedModel, added: AddedTokens) -> None:
    """Give the model the new tokens, each the mean of its pieces."""
    import torch

    grow(model, added.rows)
    with torch.no_grad():
        for table in _tables(model):
            means = [table[pieces].float().mean(0) for pieces in added.pieces]
            table[added.ids] = torch.stack(means).to(table.dtype)


def _tables(model: PreTrainedModel) -> Iterable[torch.Tensor]:
    """Embeddings and output layer; once where they are one."""
    found: dict[int, Any] = {}
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            found.setdefault(id(layer.weight), layer.weight.data)
    return found.values()
