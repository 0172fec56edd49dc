"""An engine that writes what a test wants, so far as the request's grammar lets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from aift_ray.data.prompts import PromptEncoder
from aift_ray.serving.requests import Figures, Request, Token
from aift_ray.serving.service import Service


@dataclass
class Stream:
    """The tokens of a script."""

    engine: ScriptedEngine
    request: Request

    async def __aiter__(self) -> AsyncIterator[Token]:
        constraint = self.request.grammar.begin() if self.request.grammar else None
        wished = list(self.engine.script)
        for made in range(1, self.request.max_tokens + 1):
            # where the script is not allowed to go on, the likeliest of what is allowed comes
            logits = torch.linspace(1, 0, self.engine.vocabulary)[None].clone()
            logits[0, sorted(self.request.stop_ids)] = 2.0
            if wished:
                logits[0, wished[0]] = 3.0
            if constraint:
                constraint.allow(logits)
            token = int(logits.argmax())
            if wished and token == wished[0]:
                wished.pop(0)
            if token in self.request.stop_ids:
                yield Token(token, finish="stop")
                return
            if constraint:
                constraint.advance(token)
            yield Token(token, -0.5, finish="length" if made == self.request.max_tokens else None)

    def cancel(self) -> None: ...


class ScriptedEngine:
    """Writes `script`, then ends its turn."""

    context = 4096
    holds_thoughts = True

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.script: list[int] = []
        self.requests: list[Request] = []

    def submit(self, request: Request) -> Stream:
        self.requests.append(request)
        return Stream(self, request)

    def figures(self) -> Figures:
        return Figures()

    def alive(self) -> bool:
        return True

    def close(self) -> None: ...

    async def load(self, name: str, folder: str) -> None: ...

    async def unload(self, name: str) -> None: ...


def scripted(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, ScriptedEngine]:
    """A service named `m` on such an engine."""
    engine = ScriptedEngine(len(tokenizer))
    return Service(engine, PromptEncoder(tokenizer), "nowhere", "m"), engine
