"""The requests that are worked on: prompts are read in pieces, then all rows step together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from aift_ray.serving.adapters import Adapters
from aift_ray.serving.requests import Request, Token
from aift_ray.serving.rows import RowsCache
from aift_ray.serving.sampling import Chooser

# prompt tokens read between two steps: a long prompt must not hold up the other answers
PIECE = 512


@dataclass
class Row:
    """A request that has a slot.

    Attributes:
        length: tokens whose keys are cached.
        made: tokens of the answer so far.
        last: the token that is fed next.
    """

    key: int
    request: Request
    chooser: Chooser
    length: int = 0
    made: int = 0
    last: int = 0


# what a row's turn came to
Told = tuple[Row, Token | Exception]


class Batch:
    """Steps over the rows of one model. Not for several threads at a time.

    Args:
        model: in evaluation mode.
        adapters: those on it.
    """

    def __init__(self, model: PreTrainedModel, adapters: Adapters) -> None:
        self._model: Any = model
        self._adapters = adapters
        self.rows: list[Row] = []
        self._cache = RowsCache(model.config)
        self._reading: Row | None = None
        self._read = RowsCache(model.config)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        reading = self._reading.length if self._reading else 0
        return sum(row.length for row in self.rows) + reading

    @property
    def reading(self) -> Row | None:
        """The row whose prompt is being read."""
        return self._reading

    def begin(self, row: Row) -> None:
        """Start to read a prompt; one at a time."""
        self._reading, self._read = row, RowsCache(self._model.config)

    def read(self) -> Told | None:
        """Read a piece of the prompt; the first token of the answer once all is read."""
        row = self._reading
        assert row is not None
        prompt = row.request.prompt
        piece = prompt[row.length : row.length + PIECE]
        places = torch.arange(row.length, row.length + len(piece))[None]
        logits = self._forward(torch.tensor([piece]), places, None, self._read, [row])
        row.length += len(piece)
        if row.length < len(prompt):
            return None
        read, self._read, self._reading = self._read, RowsCache(self._model.config), None
        told = self._next(row, logits)
        if isinstance(told, Token) and told.finish is None:
            self._cache.join(read)
            self.rows.append(row)
        return row, told

    def step(self) -> list[Told]:
        """One token for every row; rows that are finished leave."""
        lengths = torch.tensor([row.length for row in self.rows])
        columns = int(lengths.max()) + 1
        mask = None
        if len(set(lengths.tolist())) > 1:
            mask = (torch.arange(columns)[None] >= columns - 1 - lengths[:, None]).long()
        ids = torch.tensor([[row.last] for row in self.rows])
        logits = self._forward(ids, lengths[:, None], mask, self._cache, self.rows)
        likeliest = logits.argmax(-1).tolist()
        told: list[Told] = []
        for at, row in enumerate(self.rows):
            row.length += 1
            told.append((row, self._next(row, logits[at : at + 1], likeliest[at])))
        self._keep(
            [
                at
                for at, (_, token) in enumerate(told)
                if isinstance(token, Token) and token.finish is None
            ]
        )
        return told

    def _next(
        self, row: Row, logits: torch.Tensor, likeliest: int | None = None
    ) -> Token | Exception:
        """The next token of one row; what goes wrong with it is the matter of this row alone."""
        try:
            if row.chooser.plain and likeliest is not None:
                return self._accept(row, Token(likeliest))
            return self._accept(row, row.chooser.choose(logits))
        except Exception as error:
            return error

    def drop(self, key: int) -> None:
        """Forget a row at once."""
        if self._reading and self._reading.key == key:
            self._reading, self._read = None, RowsCache(self._model.config)
        self._keep([at for at, row in enumerate(self.rows) if row.key != key])

    def _keep(self, kept: list[int]) -> None:
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in kept]
        if self.rows:
            self._cache.keep(kept, max(row.length for row in self.rows))
        else:
            self._cache = RowsCache(self._model.config)

    def _accept(self, row: Row, token: Token) -> Token:
        row.made += 1
        row.last = token.id
        if token.id in row.request.stop_ids:
            return replace(token, finish="stop")
        if row.made >= row.request.max_tokens:
            return replace(token, finish="length")
        if row.chooser.constraint:
            row.chooser.constraint.advance(token.id)
        return token

    def _forward(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        mask: torch.Tensor | None,
        cache: RowsCache,
        rows: list[Row],
    ) -> torch.Tensor:
        """Logits (rows, vocabulary) in fp32 behind the last of `ids`, (rows, tokens)."""
        device = self._model.device
        self._adapters.choose([row.request.adapter for row in rows])
        output = self._model(
            input_ids=ids.to(device),
            position_ids=places.to(device),
            attention_mask=None if mask is None else mask.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits
