"""The routes of our own: `generate_japanese` over HTTP, and token counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response

from aift_ray.serving.answer import Answer
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.detokenizer import TextDelta
from aift_ray.serving.engines.interface import Request, SamplingParams
from aift_ray.serving.http import sse
from aift_ray.serving.openai_requests import GenerateRequest, TokenizeRequest
from aift_ray.serving.service import Service


async def generate(service: Service, body: GenerateRequest) -> Response:
    """`POST /generate`."""
    adapter = service.adapter(body.model or service.name)
    if not body.instruction.strip():
        raise ApiError(400, "the instruction is empty", "instruction")
    prompt = service.instruction_prompt(body.instruction, body.input)
    room = service.room(prompt, body.max_new_tokens, "max_new_tokens", 512)
    sampling = SamplingParams(
        temperature=body.temperature if body.do_sample else 0.0,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
    )
    stop_ids = frozenset(service.encoder.stop_ids)
    request = Request(prompt, room, stop_ids, sampling, adapter)
    [answer] = service.start(request, (), thinks=True)
    if body.stream:
        return await sse.begun(_events(answer, len(prompt)))
    piece = await answer.whole()
    return JSONResponse(_told(piece) | {"usage": sse.usage(len(prompt), [answer])})


async def _events(answer: Answer, prompt_tokens: int) -> AsyncGenerator[bytes]:
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            told = _told(piece)
            if piece.finish:
                told |= {"usage": sse.usage(prompt_tokens, [answer])}
            yield sse.event(told)
    yield b"data: [DONE]\n\n"


def _told(piece: TextDelta) -> dict[str, Any]:
    thought = {"reasoning_content": piece.thought} if piece.thought else {}
    return {"text": piece.text} | thought


def tokenize(service: Service, body: TokenizeRequest) -> dict[str, Any]:
    """`POST /tokenize`."""
    service.adapter(body.model or service.name)
    if (body.text is None) == (body.messages is None):
        raise ApiError(400, "give one of text and messages", "text")
    if body.messages is not None:
        tokens = service.chat_prompt(body.messages)
    else:
        tokens = service.text_prompt(body.text or "")
    return {"tokens": tokens, "count": len(tokens)}
