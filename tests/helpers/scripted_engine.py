"""An engine that writes what a test wants, so far as the request's grammar lets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from transformers import PreTrainedTokenizerFast

from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.serving.engines.interface import Figures, Request, Token
from aift_ray.serving.http import app
from aift_ray.serving.service import Service
from tests.helpers import chat_templates as families

ASK = {"model": "m", "messages": [{"role": "user", "content": "日本の首都は？"}]}
SWITCH = """{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""
QWEN3 = families.QWEN3.removesuffix("{%- endif %}") + SWITCH
TEMPLATES = {
    "qwen3": (QWEN3, None, "<|im_end|>"),
    "r1": (families.R1, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "harmony": (
        families.HARMONY.replace("system<|message|>", "system<|message|>' + "
                                 "(reasoning_effort or 'medium') + '"),
        "<|startoftext|>",
        "<|return|>",
    ),
}  # fmt: skip


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


class Model:
    """A scripted model of a family behind the whole application."""

    def __init__(self, family: str, tokens: str = "bpe", special: bool = False) -> None:
        template, bos, eos = TEMPLATES[family]
        backend = getattr(families, tokens)()
        self.tokenizer = families.wrap(backend, template, bos, eos)
        if special:
            marks = ["<think>", "</think>"]
            self.tokenizer.add_special_tokens({"additional_special_tokens": marks})
        self.service, self.engine = scripted(self.tokenizer)

        async def start() -> None: ...

        fleet: Any = None
        self.app = app.build(lambda: self.service, fleet, None, None, start)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://m")

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async def sent() -> httpx.Response:
            async with self.client() as client:
                return await client.post(path, json=body)

        return asyncio.run(sent())

    def send(self, script: str | list[int], **body: Any) -> httpx.Response:
        self.engine.script = self.ids(script) if isinstance(script, str) else script
        return self.post("/v1/chat/completions", ASK | body)

    def message(self, script: str | list[int], **body: Any) -> dict[str, Any]:
        response = self.send(script, **body)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        deltas = self.deltas(script, **body)
        joined = {
            name: "".join(delta.get(name) or "" for delta in deltas)
            for name in ("content", "reasoning_content")
        }
        message = choice["message"]
        assert joined["content"] == (message["content"] or "")
        assert joined["reasoning_content"] == message.get("reasoning_content", "")
        return message | {"finish": choice["finish_reason"]}

    def deltas(self, script: str | list[int], **body: Any) -> list[dict[str, Any]]:
        lines = self.send(script, stream=True, **body).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return [event["choices"][0]["delta"] for event in events]
