"""OpenAI's routes: bodies to answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from aift_ray.serving.answer import Answer
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.chat import begin, request_of
from aift_ray.serving.http import sse
from aift_ray.serving.http.openai_objects import ChatForm, ResponseBuilder, TextForm, ToolForm
from aift_ray.serving.openai_requests import ChatRequest, CompletionRequest
from aift_ray.serving.service import Service

Body = ChatRequest | CompletionRequest


def models(service: Service) -> dict[str, Any]:
    """The base, then the adapters."""
    data = [model(service, name) for name in (service.name, *service.adapters)]
    return {"object": "list", "data": data}


def model(service: Service, name: str) -> dict[str, Any]:
    """The base or an adapter; ApiError 404 where there is none of that name."""
    known = service.adapter(name) or service.name
    return {"id": known, "object": "model", "created": service.created, "owned_by": "aift-ray"}


async def chat(service: Service, body: ChatRequest) -> Response:
    """`POST /v1/chat/completions`."""
    begun = begin(service, body)
    form = ChatForm(service.token_bytes, body.model, bool(body.logprobs))
    if begun.names:
        form = ToolForm(service.token_bytes, body.model, begun.names, bool(body.logprobs))
    return await _respond(body, begun.answers, begun.prompt_tokens, form)


async def complete(service: Service, body: CompletionRequest) -> Response:
    """`POST /v1/completions`."""
    adapter = service.adapter(body.model)
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "needs echo: true, or at least 1", "max_tokens")
    given = body.prompts()
    prompts = [service.prompt(prompt) for prompt in given]
    rooms = [service.room(prompt, body.max_tokens, "prompt", 16) for prompt in prompts]
    answers: list[Answer] = []
    number = body.n or 1
    try:
        for prompt, room in zip(prompts, rooms, strict=True):
            request = request_of(service, body, prompt, room, adapter, body.logprobs)
            if body.echo and body.logprobs is not None:
                request = replace(request, scores=True)
            answers += service.start(request, body.stops(), number)
    except ApiError:
        for answer in answers:
            answer.cancel()
        raise
    texts = [_text(service, prompt) for prompt in given for _ in range(number)]
    logprobs = body.logprobs is not None
    form = TextForm(service.token_bytes, body.model, logprobs, texts if body.echo else ())
    return await _respond(body, answers, sum(map(len, prompts)), form)


def _text(service: Service, prompt: str | list[int]) -> str:
    """What is echoed of a prompt."""
    if isinstance(prompt, str):
        return prompt
    return str(service.encoder.tokenizer.decode(prompt, skip_special_tokens=True))


async def _respond(
    body: Body, answers: list[Answer], prompt_tokens: int, form: ResponseBuilder
) -> Response:
    if body.stream:
        tells_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = sse.events(answers, form, prompt_tokens, tells_usage)
        return await sse.begun(events)
    pieces = await sse.all_of(answers)
    usage = sse.usage(prompt_tokens, answers)
    return JSONResponse(form.whole(pieces) | {"usage": usage})
