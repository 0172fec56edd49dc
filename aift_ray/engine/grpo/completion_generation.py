"""Completions of prompts by the model that is trained, sampled by numbers of their own.

Each completion draws from a stream of random numbers that its key alone decides, one number a
token, so a completion depends neither on the others nor on which worker generates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedConfig,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aift_ray.config import GRPOConfig
from aift_ray.engine.grpo.packed_layers import packed
from aift_ray.models.decoder import causal_model
from aift_ray.serving.engines.transformers.kv_cache import RowsCache

# tokens of prompts that are read together
_READ = 4096
# tokens whose probabilities are summed in fp32
_BLOCK = 256
# rows that are finished leave the cache once they are this share of it
_SPARSE = 0.25


@dataclass(frozen=True)
class Completion:
    """A generated completion.

    Attributes:
        ids: tokens, with the one that ended it.
        logps: (own tokens,), log-probabilities at the temperature, before top_p, top_k and min_p.
        truncated: it was cut at the limit of tokens.
        own: (tokens,), 1 where the model wrote the token, 0 in replies of an environment; None: it
            wrote all of them.
        messages: the turns of an episode; None: the completion is one turn.
    """

    ids: np.ndarray
    logps: np.ndarray
    truncated: bool
    own: np.ndarray | None = None
    messages: list[dict[str, Any]] | None = None


class CompletionGenerator:
    """Generates by a transformers model.

    Args:
        decode: the forward of the language model; the caller sets evaluation mode.
        model: the language model.
        stop_ids: each ends a completion, and is part of it.
        device: the model's.
    """

    def __init__(
        self,
        decode: Callable[..., Any],
        model: nn.Module,
        how: GRPOConfig,
        stop_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        self._decode, self._model, self._how, self._device = decode, model, how, device
        self._config: PreTrainedConfig = causal_model(model).config
        self._stops = torch.tensor(list(stop_ids), device=device)
        self._pad = stop_ids[0]
        self._warpers = LogitsProcessorList()
        if how.top_k:
            self._warpers.append(TopKLogitsWarper(how.top_k))
        if how.top_p < 1:
            self._warpers.append(TopPLogitsWarper(how.top_p))
        if how.min_p:
            self._warpers.append(MinPLogitsWarper(how.min_p))

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[np.ndarray], keys: Sequence[Sequence[tuple[int, ...]]]
    ) -> list[list[Completion]]:
        """Completions of each prompt, generated together.

        Args:
            prompts: token ids.
            keys: for each prompt, one a completion: what its random numbers are drawn by.
        """
        repeats = [len(each) for each in keys]
        numbers = torch.from_numpy(
            np.stack([_numbers(key, self._how) for each in keys for key in each])
        ).to(self._device)
        lengths = np.repeat([len(prompt) for prompt in prompts], repeats)
        state = _State(numbers, torch.from_numpy(lengths).to(self._device))
        with packed(self._model):
            self._write(state, *self._read(prompts, repeats))
        found = iter(state.completions())
        return [[next(found) for _ in range(number)] for number in repeats]

    def _read(
        self, prompts: Sequence[np.ndarray], repeats: Sequence[int]
    ) -> tuple[RowsCache, torch.Tensor]:
        """The keys and values of prompts, each as often as it is completed, and the next logits."""
        cache, logits = RowsCache(self._config), []
        longest = max(len(prompt) for prompt in prompts)
        size = max(1, _READ // longest)
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            width = max(len(prompt) for prompt in part)
            front = [width - len(prompt) for prompt in part]
            ids = np.stack(
                [
                    np.pad(p, (n, 0), constant_values=self._pad)
                    for p, n in zip(part, front, strict=True)
                ]
            )
            places = torch.arange(width)[None] - torch.tensor(front)[:, None]
            read = RowsCache(self._config)
            found = self._forward(torch.from_numpy(ids.astype(np.int64)), places, read)
            rows = np.repeat(np.arange(len(part)), repeats[start : start + size]).tolist()
            read.keep(rows, width)
            cache.join(read)
            logits.append(found[rows])
        return cache, torch.cat(logits)

    def _write(self, state: _State, cache: RowsCache, logits: torch.Tensor) -> None:
        how = self._how
        for number in range(how.max_completion_length):
            scaled = logits / how.temperature if how.temperature != 1 else logits
            tokens, logps = self._sampled(scaled, state.numbers[state.rows, number])
            state.take(number, tokens, logps, torch.isin(tokens, self._stops))
            if state.done or number + 1 == how.max_completion_length:
                return
            kept = state.leave(_SPARSE)
            if kept is not None:
                columns = int(state.lengths[state.rows].max()) + number
                cache.keep(kept.tolist(), columns)
                tokens = tokens[kept]
            places = state.lengths[state.rows] + number
            logits = self._forward(tokens[:, None], places[:, None], cache)

    def _sampled(
        self, logits: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token of each row, by a number between 0 and 1, and its log-probability; (rows,)."""
        most = logits.max(-1, keepdim=True).values
        weights = (logits - most).exp_()
        blocks, edges = _blocks(weights)
        total = edges[:, -1]
        if self._warpers:
            nothing: Any = None
            weights = (self._warpers(nothing, logits) - most).exp_()
            blocks, edges = _blocks(weights)
        tokens = _drawn(blocks, edges, numbers)
        chosen = (logits.gather(-1, tokens[:, None]) - most)[:, 0].double()
        return tokens, (chosen - total.log()).float()

    def _forward(self, ids: torch.Tensor, places: torch.Tensor, cache: RowsCache) -> torch.Tensor:
        """Logits (rows, vocabulary) in fp32 after the last of `ids`, (rows, tokens)."""
        places = places.to(self._device)
        # rows are aligned at their right ends
        columns = cache.columns + ids.shape[1]
        first = columns - (places[:, -1] + 1)
        mask = (torch.arange(columns, device=self._device)[None] >= first[:, None]).long()
        output = self._decode(
            input_ids=ids.to(self._device),
            position_ids=places.clamp(min=0),
            attention_mask=None if bool((first <= 0).all()) else mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _blocks(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of tokens, (rows, blocks, block), and what they add up to, (rows, blocks).

    The sums of a block are in fp32, and over the blocks in double precision: one sum over a large
    vocabulary would lose the rare tokens, and all of it in double precision takes as long as a
    small model.
    """
    rows, size = weights.shape
    missing = -size % _BLOCK
    blocks = (pad(weights, (0, missing)) if missing else weights).view(rows, -1, _BLOCK)
    return blocks, blocks.sum(-1).double().cumsum(-1)


def _drawn(blocks: torch.Tensor, edges: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The token at which the weights reach a share of their sum, (rows,)."""
    wanted = _below(numbers * edges[:, -1], edges[:, -1])
    block = torch.searchsorted(edges, wanted[:, None], right=True)
    before = pad(edges, (1, 0)).gather(1, block)
    held = edges.gather(1, block) - before
    rows = torch.arange(len(blocks), device=blocks.device)
    within = blocks[rows, block[:, 0]].double().cumsum(-1)
    whole = within[:, -1:]
    share = _below((wanted[:, None] - before) / held * whole, whole)
    return (block * _BLOCK + torch.searchsorted(within, share, right=True))[:, 0]


def _below(values: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Values under their limits: what reaches them would be of a token without weight."""
    return torch.minimum(values, torch.nextafter(limits, torch.zeros_like(limits)))


class _State:
    """The rows that are written.

    Attributes:
        numbers: (completions, tokens), random numbers.
        lengths: (completions,), tokens of the prompts.
        rows: (rows,), the completions that are in the cache.
    """

    def __init__(self, numbers: torch.Tensor, lengths: torch.Tensor) -> None:
        self.numbers, self.lengths = numbers, lengths
        number, most = numbers.shape
        self.rows = torch.arange(number, device=numbers.device)
        self._ids = torch.zeros(number, most, dtype=torch.int32, device=numbers.device)
        self._logps = torch.zeros(number, most, dtype=torch.float32, device=numbers.device)
        self._ends = torch.zeros(number, dtype=torch.int64, device=numbers.device)

    @property
    def done(self) -> bool:
        """Whether all are finished."""
        return bool((self._ends > 0).all())

    def take(self, at: int, tokens: torch.Tensor, logps: torch.Tensor, stops: torch.Tensor) -> None:
        """Keep the token of each row at a place of the completions."""
        self._ids[self.rows, at] = tokens.int()
        self._logps[self.rows, at] = logps
        ended = stops & (self._ends[self.rows] == 0)
        self._ends[self.rows[ended]] = at + 1

    def leave(self, share: float) -> torch.Tensor | None:
        """The places of the rows that stay, (rows,); None: too few are finished to cut them off."""
        going_on = self._ends[self.rows] == 0
        if int((~going_on).sum()) <= share * len(self.rows):
            return None
        kept = going_on.nonzero()[:, 0]
        self.rows = self.rows[kept]
        return kept

    def completions(self) -> list[Completion]:
        """All of them."""
        ids, logps, ends = (t.cpu().numpy() for t in (self._ids, self._logps, self._ends))
        most = ids.shape[1]
        return [
            Completion(ids[row, : end or most].copy(), logps[row, : end or most].copy(), not end)
            for row, end in enumerate(ends.tolist())
        ]


def _numbers(key: tuple[int, ...], how: GRPOConfig) -> np.ndarray:
    """The random numbers of a completion, (tokens,), between 0 and 1."""
    entropy = np.random.SeedSequence(list(key))
    return np.random.Generator(np.random.Philox(entropy)).random(how.max_completion_length)
