"""New tokens of a model: in its tokenizer, and as rows of its embeddings and its output layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aift_ray.data.prompts.safe_tokenizer import TEXT_TOKENS, text_tokens

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
        # those of a template stay control tokens, which no row can write
        template = str(tokenizer.chat_template or "")
        words = [token for token in self.tokens if token not in template]
        known = [one for one in text_tokens(tokenizer) if one not in words]
        tokenizer.init_kwargs[TEXT_TOKENS] = [*known, *words]


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
    return AddedTokens(tokens, list(ids), pieces, max(rows, max(ids) + 1), alone)


def grow(model: PreTrainedModel, rows: int) -> None:
    """Give embeddings and output layer at least so many rows; new ones are the mean of all."""
    import torch

    embeddings: Any = model.get_input_embeddings()
    before = embeddings.weight.shape[0]
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
