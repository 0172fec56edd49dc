"""Log-likelihoods of token sequences; what sequences have in common is computed once.

Choices of one prompt share its keys and values, and prompts that begin with the same examples
share those. The cache of transformers is copied for each row; models whose cache can't be copied,
or gives other values than a plain forward pass (tried on the first rows), read every sequence by
itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from transformers import DynamicCache, PreTrainedModel

from aift_ray.tasks.task_prompts import ScoredSequence

_LOG = logging.getLogger(__name__)

# bytes of logits that are held at a time
_LOGITS = 256 * 2**20
# fewer tokens in common are not worth a pass of their own
_SHARED = 16
_TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


@dataclass
class _Group:
    """Sequences with the same beginning: the choices of one prompt.

    Attributes:
        at: place of each sequence in the result.
        prompt: what they have in common before the first scored token.
        tails: the rest of each; its tokens from `starts` on are scored.
    """

    at: list[int]
    prompt: list[int]
    tails: list[list[int]]
    starts: list[int]


class Likelihoods:
    """Computes log-likelihoods with one model.

    Args:
        model: causal language model in evaluation mode.
        tokens: of prompts that are read together.

    Attributes:
        plain: None while prompts are shared, else why each sequence is read by itself.
    """

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        config = model.config.get_text_config(decoder=True)
        self._vocabulary: int = config.vocab_size
        self._window = _window(config)
        self.plain: str | None = None
        self._tried = False

    @torch.inference_mode()
    def sums(self, groups: Sequence[Sequence[ScoredSequence]]) -> list[list[float]]:
        """Summed log-probabilities, in nats, of the scored tokens of each sequence.

        Args:
            groups: sequences that share their beginning, such as the choices of a prompt.
        """
        found: list[list[float]] = [[0.0] * len(group) for group in groups]
        order = sorted(range(len(groups)), key=lambda at: -len(groups[at][0].ids))
        if order and not self._tried:
            self._try(groups[order[-1]])
        for batch in self._batches([(at, _grouped(groups[at])) for at in order]):
            for (at, group), values in zip(
                batch, self._compute([g for _, g in batch]), strict=True
            ):
                for place, value in zip(group.at, values, strict=True):
                    found[at][place] = value
        return found

    def _try(self, group: Sequence[ScoredSequence]) -> None:
        """Compare shared and plain values once; keep to plain ones where they differ."""
        self._tried = True
        pair = [_grouped(group)]
        expected = self._plain(pair)[0]
        # two rows of different lengths, so that padding is tried as well
        shorter = [ScoredSequence(each.ids[1:], each.start - 1) for each in group if each.start > 1]
        if len(shorter) == len(group):
            pair.append(_grouped(shorter))
        try:
            values = self._shared(pair)[0]
        except Exception as error:
            self.plain = f"its cache can't be shared ({type(error).__name__}: {error})"
        else:
            gap = max(abs(a - b) for a, b in zip(values, expected, strict=True))
            if not gap <= _TOLERANCE.get(self._model.dtype, 0.5):
                self.plain = f"shared prompts would move log-likelihoods by {gap:.3g}"
        if self.plain:
            _LOG.info("every sequence is read by itself: %s", self.plain)

    def _batches(self, groups: list[tuple[int, _Group]]) -> Iterator[list[tuple[int, _Group]]]:
        """Groups that are computed together, longest first."""
        batch: list[tuple[int, _Group]] = []
        longest, tails, positions = 0, 0, 0
        for at, group in groups:
            rows, tail = len(group.tails), max(map(len, group.tails))
            longest = max(longest, len(group.prompt))
            tails, positions = max(tails, tail), positions + rows
            tokens = longest * (len(batch) + 1)
            if batch and (
                tokens > self._tokens or positions * max(tails, 1) * self._vocabulary * 4 > _LOGITS
            ):
                yield batch
                batch, longest, tails, positions = [], len(group.prompt), tail, rows
            batch.append((at, group))
        if batch:
            yield batch

    def _compute(self, groups: list[_Group]) -> list[list[float]]:
        most = _LOGITS // (4 * self._vocabulary)
        if self.plain or any(not g.prompt or max(map(len, g.tails)) > most for g in groups):
            return self._plain(groups)
        return self._shared(groups)

    def _plain(self, groups: list[_Group]) -> list[list[float]]:
        """Each sequence by itself."""
        return [
            [
                self._alone(group.prompt + tail, len(group.prompt) + start)
                for tail, start in zip(group.tails, group.starts, strict=True)
            ]
            for group in groups
        ]

    def _alone(self, sequence: list[int], start: int) -> float:
        """One sequence without padding; in pieces, on a cache, where its logits are too many."""
        ids = torch.tensor([sequence], device=self._model.device)
        scored, most = len(sequence) - start, max(1, _LOGITS // (4 * self._vocabulary))
        if self.plain or scored <= most:
            output = self._model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=scored)
            return float(_chosen(output.logits[0, -scored:], ids[0, -scored:]).double().sum())
        cache = DynamicCache(config=self._model.config)
        total, edges = 0.0, [0, *range(start - 1, len(sequence) - 1, most), len(sequence) - 1]
        for first, last in pairwise(edges):
            if last > first:
                piece = ids[:, first:last]
                keep = 1 if last < start else 0
                logits = self._model(
                    input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=keep
                ).logits[0]
                if last >= start:
                    total += float(_chosen(logits, ids[0, first + 1 : last + 1]).double().sum())
        return total

    def _shared(self, groups: list[_Group]) -> list[list[float]]:
        """Prompts once, left-padded; then the tails on copies of their keys and values."""
        model, device = self._model, self._model.device
        longest = max(len(group.prompt) for group in groups)
        tail = max(len(tail) for group in groups for tail in group.tails)
        first = self._common(groups, longest + tail)
        cache = DynamicCache(config=model.config)
        if first:
            ids = torch.tensor([groups[0].prompt[:first]], device=device)
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(groups))
        width = longest - first
        rests = [group.prompt[first:] for group in groups]
        ids = torch.tensor([[0] * (width - len(rest)) + rest for rest in rests], device=device)
        lengths = torch.tensor([len(rest) for rest in rests], device=device)[:, None]
        seen = torch.arange(width, device=device)[None] >= width - lengths
        mask = torch.cat([seen.new_ones(len(groups), first), seen], 1)
        positions = (torch.arange(width, device=device)[None] - (width - lengths)).clamp(min=0)
        logits = model(
            input_ids=ids,
            attention_mask=None if mask.all() else mask.long(),
            position_ids=positions + first,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return self._tails(groups, logits, mask, lengths + first, cache)

    def _tails(
        self,
        groups: list[_Group],
        logits: torch.Tensor,
        mask: torch.Tensor,
        lengths: torch.Tensor,
        cache: DynamicCache,
    ) -> list[list[float]]:
        """Score the tails.

        Args:
            logits: behind the last token of each prompt, (groups, vocabulary).
            mask, lengths: of the prompts in the cache, (groups, columns) and (groups, 1).
        """
        device = logits.device
        owners = [at for at, group in enumerate(groups) for _ in group.tails]
        tails = [tail for group in groups for tail in group.tails]
        starts = [start for group in groups for start in group.starts]
        owner = torch.tensor(owners, device=device)
        width = max(len(tail) for tail in tails) - 1
        target = torch.tensor([tail[0] for tail in tails], device=device)
        # of each row the log-probability of its first token
        found = torch.log_softmax(logits.float(), -1)[owner, target].double()
        found = torch.where(torch.tensor(starts, device=device) == 0, found, 0.0)
        if width:
            rows = torch.tensor([len(tail) > 1 for tail in tails], device=device).nonzero()[:, 0]
            kept = rows.tolist()
            cache.batch_select_indices(owner[rows])
            read = [tails[at][:-1] for at in kept]
            ids = torch.tensor([part + [0] * (width - len(part)) for part in read], device=device)
            there = torch.tensor([len(part) for part in read], device=device)[:, None]
            columns = torch.arange(width, device=device)[None]
            after = self._model(
                input_ids=ids,
                attention_mask=torch.cat([mask[owner[rows]], columns < there], 1).long(),
                position_ids=lengths[owner[rows]] + columns,
                past_key_values=cache,
                use_cache=True,
            ).logits
            targets = torch.tensor(
                [tails[at][1:] + [0] * (width + 1 - len(tails[at])) for at in kept], device=device
            )
            begins = torch.tensor([starts[at] for at in kept], device=device)[:, None]
            counted = (columns < there) & (columns + 1 >= begins)
            values = torch.where(counted, _chosen(after, targets), 0.0).double()
            found[rows] += values.sum(1)
        flat = iter(found.tolist())
        return [[next(flat) for _ in group.tails] for group in groups]

    def _common(self, groups: list[_Group], columns: int) -> int:
        """Tokens with which all prompts begin, where it pays to read them once.

        The padding that then stands behind them would move what a sliding window sees.
        """
        if len(groups) < 2 or (self._window and columns > self._window):
            return 0
        shortest = min(len(group.prompt) for group in groups) - 1
        columns_ = zip(*(group.prompt[:shortest] for group in groups), strict=True)
        same = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns_))
        return same if same >= _SHARED else 0


def _grouped(sequences: Sequence[ScoredSequence]) -> _Group:
    """Sequences by what they have in common; at least one token of each is left."""
    least = min(min(each.start for each in sequences), min(len(s.ids) for s in sequences) - 1)
    columns = zip(*(each.ids[:least] for each in sequences), strict=True)
    same = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
    # there is always a token before the first that is scored
    return _Group(
        list(range(len(sequences))),
        list(sequences[0].ids[:same]),
        [list(each.ids[same:]) for each in sequences],
        [each.start - same for each in sequences],
    )


def _chosen(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of `targets` (..., tokens) under `logits` (..., tokens, vocabulary)."""
    logits = logits.float()
    picked = logits.gather(-1, targets[..., None])[..., 0]
    return picked - torch.logsumexp(logits, -1)


def _window(config: object) -> int | None:
    """The smallest sliding window of a model's layers."""
    names = ("sliding_window", "attention_window", "attention_chunk_size")
    found = [getattr(config, name, None) for name in names]
    return min((size for size in found if isinstance(size, int) and size > 0), default=None)
