"""The requests that are worked on: prompts are read in pieces, then all rows step together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from aift_ray.serving.engines.interface import Request, Token
from aift_ray.serving.engines.transformers.kv_cache import AHEAD, RowsCache, States
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.prefix_cache import Prefix, Prefixes
from aift_ray.serving.engines.transformers.sampler import Chooser

# prompt tokens read between two steps: long prompts must not hold up the other answers
PIECE = 512


@dataclass
class Row:
    """A request that has a slot, or had one and waits for another.

    Attributes:
        length: tokens whose keys are cached.
        answer: the tokens so far; the last one is fed next.
    """

    key: int
    request: Request
    chooser: Chooser
    length: int = 0
    answer: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """What has to be read before the next token: the prompt, and an answer that goes on."""
        return self.request.prompt + self.answer


# what a row's turn came to
Told = tuple[Row, Token | Exception]


class Scheduler:
    """Steps over the rows of one model. Not for several threads at a time.

    Args:
        model: in evaluation mode.
        adapters: those on it.
        prefixes: of earlier requests.
    """

    def __init__(self, model: PreTrainedModel, adapters: Adapters, prefixes: Prefixes) -> None:
        self._model, self._adapters, self._prefixes = model, adapters, prefixes
        self.rows: list[Row] = []
        self._cache = RowsCache(model.config)
        self._reading: list[Row] = []
        self._read = RowsCache(model.config)
        self._after: Callable[[], None] | None = None

    def tokens_with(self, *lengths: int) -> int:
        """Tokens, padding and room to grow included, whose keys and values would be held.

        Args:
            lengths: of rows that would come.
        """
        held = [row.length or len(row.tokens) for row in (*self.rows, *self._reading)]
        columns = [*held, *lengths]
        return len(columns) * (max(columns) + 1 + AHEAD) if columns else 0

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return sum(row.length for row in (*self.rows, *self._reading))

    @property
    def reading(self) -> list[Row]:
        """The rows whose prompts are being read."""
        return self._reading

    def new_tokens(self, tokens: list[int], adapter: str) -> int:
        """How many of the tokens to read no earlier request has computed."""
        return len(tokens) - self._earlier(tokens, adapter)[1]

    def begin(self, rows: list[Row]) -> None:
        """Start to read prompts: several whose new tokens fit a piece together, or a single one."""
        # rows of the same adapter side by side, see Mixed
        rows = sorted(rows, key=lambda row: row.request.adapter)
        self._reading, self._read = rows, RowsCache(self._model.config)
        tokens = [row.tokens for row in rows]
        longest = max(map(len, tokens))
        pairs = zip(tokens, rows, strict=True)
        found = [self._earlier(known, row.request.adapter) for known, row in pairs]
        fronts = [longest - len(known) for known in tokens]
        # all rows are read from the same column on
        start = min(front + same for front, (_, same) in zip(fronts, found, strict=True))
        if not start:
            return
        parts: list[tuple[States, int] | None] = []
        for front, (prefix, _) in zip(fronts, found, strict=True):
            if prefix and front < start:
                parts.append((self._prefixes.use(prefix, start - front), front))
            else:
                parts.append(None)
        self._read.begin(parts, start)

    def _earlier(self, tokens: list[int], adapter: str) -> tuple[Prefix | None, int]:
        return self._prefixes.find(self._adapters.content(adapter), tokens)

    def read(self) -> list[Told]:
        """Read a piece of the prompts; the next tokens of the answers once all is read.

        `settle` has to follow; these are to be told whether it fails or not.
        """
        rows, known = self._reading, [row.tokens for row in self._reading]
        lengths = [len(each) for each in known]
        start, longest = self._read.columns, max(lengths)
        end = min(longest, start + max(PIECE // len(rows), 1))
        padded = [[0] * (longest - len(each)) + each for each in known]
        places = torch.arange(start, end)[None] - (longest - torch.tensor(lengths)[:, None])
        mask = _mask(lengths, longest, end)
        ids = torch.tensor([each[start:end] for each in padded])
        logits = self._forward(ids, places.clamp(min=0), mask, self._read, rows)
        for row, length in zip(rows, lengths, strict=True):
            row.length = max(0, end - longest + length)
        if end < longest:
            return []
        told = [(row, self._next(row, logits[at : at + 1])) for at, row in enumerate(rows)]
        self._after = partial(self._join, rows, lengths, told)
        return told

    def settle(self) -> None:
        """Let rows whose answers are finished leave, and those whose prompts are read come in."""
        if self._after:
            after, self._after = self._after, None
            after()

    def _join(self, rows: list[Row], lengths: list[int], told: list[Told]) -> None:
        kept = _going_on(told)
        self._remember(rows, kept, self._read)
        if kept:
            if len(kept) < len(rows):
                self._read.keep(kept, max(lengths[at] for at in kept))
            self._cache.join(self._read)
            self.rows += [rows[at] for at in kept]
        self._reading, self._read = [], RowsCache(self._model.config)

    def step(self) -> list[Told]:
        """One token for every row; `settle` has to follow, as after `read`."""
        lengths = [row.length + 1 for row in self.rows]
        ids = torch.tensor([[row.answer[-1]] for row in self.rows])
        places = torch.tensor([[row.length] for row in self.rows])
        mask = _mask(lengths, max(lengths), max(lengths))
        logits = self._forward(ids, places, mask, self._cache, self.rows)
        likeliest = logits.argmax(-1).tolist()
        told: list[Told] = []
        for at, row in enumerate(self.rows):
            row.length += 1
            told.append((row, self._next(row, logits[at : at + 1], likeliest[at])))
        self._after = lambda: self._keep(_going_on(told))
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
        # a prompt whose reading takes several turns is read alone
        self._reading = [row for row in self._reading if row.key != key]
        self._keep([at for at, row in enumerate(self.rows) if row.key != key])

    def _keep(self, kept: list[int]) -> None:
        if len(kept) == len(self.rows):
            return
        self._remember(self.rows, kept, self._cache)
        self.rows = [self.rows[at] for at in kept]
        if self.rows:
            self._cache.keep(kept, max(row.length for row in self.rows))
        else:
            self._cache = RowsCache(self._model.config)

    def _remember(self, rows: list[Row], kept: list[int], cache: RowsCache) -> None:
        """What the rows that leave have computed, for prompts that begin like them."""
        for at in set(range(len(rows))) - set(kept):
            row = rows[at]
            tokens = (row.request.prompt + row.answer)[: row.length]
            content = self._adapters.content(row.request.adapter)
            self._prefixes.keep(content, tokens, cache.row(at, len(tokens)))

    def _accept(self, row: Row, token: Token) -> Token:
        row.answer.append(token.id)
        if token.id in row.request.stop_ids:
            return replace(token, finish="stop")
        if len(row.answer) >= row.request.max_tokens:
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


def _mask(lengths: list[int], longest: int, columns: int) -> torch.Tensor | None:
    """The first `columns` of rows aligned at the right end, (rows, columns); None: all count."""
    if min(lengths) == longest:
        return None
    first = longest - torch.tensor(lengths)[:, None]
    return (torch.arange(columns)[None] >= first).long()


def _going_on(told: list[Told]) -> list[int]:
    """The places of the rows whose answers are not finished."""
    return [
        at for at, (_, token) in enumerate(told) if isinstance(token, Token) and not token.finish
    ]
