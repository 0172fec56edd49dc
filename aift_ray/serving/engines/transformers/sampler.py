"""Logits to the next token of one row, by transformers' own processors."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aift_ray.serving.engines.interface import Request, SamplingParams, Token

# below it logits over temperature are no numbers any more
_COLDEST = 1e-5


class AnswerPenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalties: on tokens of the answer, not of the prompt."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self.presence, self.frequency, self.start = presence, frequency, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (1, vocabulary) less the penalties."""
        tokens, times = input_ids[0, self.start :].unique(return_counts=True)
        scores = scores.clone()
        scores[0, tokens] -= self.presence + self.frequency * times.to(scores.dtype)
        return scores


class Bias(LogitsProcessor):
    """OpenAI's logit_bias: (id, bias) is added whatever came before."""

    def __init__(self, biases: Sequence[tuple[int, float]]) -> None:
        tokens, values = zip(*biases, strict=True)
        self.tokens, self.values = torch.tensor(tokens), torch.tensor(values)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (1, vocabulary) and the biases."""
        tokens, values = self.tokens.to(scores.device), self.values.to(scores)
        return scores.index_add(1, tokens, values[None])


class Chooser:
    """Chooses the tokens of one request.

    Args:
        device: where the logits are.
    """

    def __init__(self, request: Request, device: torch.device) -> None:
        sampling = request.sampling
        self.greedy = sampling.temperature < _COLDEST
        self.constraint = request.grammar.begin() if request.grammar else None
        self._top = request.top_logprobs
        self._penalties = _penalties(sampling, len(request.prompt))
        self._warpers: Any = LogitsProcessorList([] if self.greedy else _warpers(sampling))
        self._ids: Any = torch.tensor([request.prompt], device=device) if self._penalties else None
        self._generator = torch.Generator(device)
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self._generator.manual_seed(seed)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is wanted."""
        return self.greedy and self._top is None and not self.constraint and not self._penalties

    def choose(self, logits: torch.Tensor) -> Token:
        """The next token, from logits (1, vocabulary) in fp32."""
        scores = logits
        if self._ids is not None:
            scores = self._penalties(self._ids, scores)
        if self.constraint:
            scores = scores.clone() if scores is logits else scores
            self.constraint.allow(scores)
        if self.greedy:
            chosen = int(scores.argmax())
        else:
            warped = self._warpers(self._ids, scores).softmax(-1)
            chosen = int(torch.multinomial(warped, 1, generator=self._generator))
        if self._ids is not None:
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[chosen]])], dim=1)
        if self._top is None:
            return Token(chosen)
        logprobs = logits[0].log_softmax(-1)
        values, tokens = logprobs.topk(min(self._top, len(logprobs)))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return Token(chosen, float(logprobs[chosen]), top)


def _penalties(sampling: SamplingParams, prompt_length: int) -> Any:
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        found.append(
            AnswerPenalty(sampling.presence_penalty, sampling.frequency_penalty, prompt_length)
        )
    if sampling.logit_bias:
        found.append(Bias(sampling.logit_bias))
    return found


def _warpers(sampling: SamplingParams) -> list[LogitsProcessor]:
    # in the order of generate()
    found: list[LogitsProcessor] = []
    if sampling.temperature != 1:
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(max(sampling.top_p, 1e-9)))
    if sampling.min_p:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found
