"""What an engine is asked, what it answers, and what every engine can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from aift_ray.errors import AiftError

BASE = ""
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; the defaults change nothing.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: 0: all.
        repetition_penalty: factor on tokens of prompt and answer (1: none).
        presence_penalty, frequency_penalty: subtracted from the logits of tokens of the answer,
            once, and for each occurrence.
        seed: None: a new one for each request.
        logit_bias: what is added to the logits of tokens, (id, bias).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """Which tokens may come next; belongs to one request."""

    def allow(self, logits: torch.Tensor) -> None:
        """Set the logits (1, vocabulary) of forbidden tokens to -inf, in place."""

    def advance(self, token: int) -> None:
        """Take the chosen token."""


class Grammar(Protocol):
    """What answers are held to.

    Attributes:
        schema: a JSON schema, with llguidance's options in it.
    """

    schema: str

    def begin(self) -> Constraint:
        """The state at the start of an answer."""


@dataclass(frozen=True)
class Request:
    """One answer to be made.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: of the answer; 0: one is made, and not told.
        stop_ids: each ends the answer and is not part of it.
        adapter: name of a loaded adapter, or BASE.
        top_logprobs: how many likeliest tokens are told with each token; None: no probabilities.
        grammar: what the answer is held to.
        scores: whether the first token comes with the prompt's.
    """

    prompt: list[int]
    max_tokens: int
    stop_ids: frozenset[int]
    sampling: SamplingParams = SamplingParams()
    adapter: str = BASE
    top_logprobs: int | None = None
    grammar: Grammar | None = None
    scores: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer.

    Attributes:
        logprob: of the model itself, before penalties and temperature; None where not asked for.
        top: the likeliest tokens and their logprobs.
        finish: why the answer ends with this token; "stop": this is the token that ended it.
        prompt: with the first token of a request that `scores`: those of the prompt.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    prompt: tuple[Token, ...] = ()


@dataclass
class Figures:
    """What an engine has done and is doing.

    Attributes:
        cached_tokens: of the requests that are worked on, whose keys and values are held.
        cache_tokens: how many can be held; 0: as many as the memory takes.
        reused_tokens: of prompts, so far, whose keys and values were there from an earlier prompt.
    """

    running: int = 0
    waiting: int = 0
    cached_tokens: int = 0
    cache_tokens: int = 0
    reused_tokens: int = 0


class EngineError(AiftError):
    """The engine failed while it worked on a request."""


class QueueFull(AiftError):
    """There is no room for one more waiting request."""


class Stream(Protocol):
    """The tokens of one request as they come."""

    def __aiter__(self) -> AsyncIterator[Token]:
        """Token after token; the last one has `finish`. EngineError where the engine failed."""

    def cancel(self) -> None:
        """Stop working on it and free its slot; allowed at any time, any number of times."""


class Engine(Protocol):
    """Makes tokens of requests, several at a time. All calls come from one event loop."""

    vocabulary: int
    context: int
    # whether a Constraint of ours is asked at each token
    holds_thoughts: bool

    def submit(self, request: Request) -> Stream:
        """Queue a request. QueueFull where too many wait."""

    async def load(self, name: str, folder: str) -> None:
        """Make the adapter of a folder usable under a name. ModelError where it can't be."""

    async def unload(self, name: str) -> None:
        """Forget an adapter, once no request uses it any more."""

    def figures(self) -> Figures:
        """The present state."""

    def alive(self) -> bool:
        """Whether it can answer."""

    def close(self) -> None:
        """Stop; requests that are under way fail."""
