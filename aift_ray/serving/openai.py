"""OpenAI's routes: bodies to answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from aift_ray.serving import stream, tools
from aift_ray.serving.failures import ApiError
from aift_ray.serving.forms import ChatForm, Form, TextForm, ToolForm
from aift_ray.serving.grammar import GrammarError
from aift_ray.serving.protocol import ChatRequest, CompletionRequest, ResponseFormat
from aift_ray.serving.requests import Grammar, Request, Sampling
from aift_ray.serving.service import Answer, Service

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
    adapter = service.adapter(body.model)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "give one of max_tokens and max_completion_tokens"
        raise ApiError(400, message, "max_completion_tokens")
    offered = tools.offered(body)
    prompt = service.chat_prompt(body.messages, offered)
    asked = body.max_completion_tokens or body.max_tokens
    room = service.room(prompt, asked, "messages", None)
    top = (body.top_logprobs or 0) if body.logprobs else None
    request = _request(service, body, prompt, room, adapter, top)
    call = tools.held_to(body, offered)
    if call:
        request = replace(request, grammar=_following(service, call, "tools"))
    answers = service.start(request, body.stops(), body.n or 1)
    form = ChatForm(service.token_bytes, body.model)
    if offered:
        names = [each["function"]["name"] for each in offered]
        form = ToolForm(service.token_bytes, body.model, names)
    return await _respond(body, answers, len(prompt), form)


async def complete(service: Service, body: CompletionRequest) -> Response:
    """`POST /v1/completions`."""
    adapter = service.adapter(body.model)
    prompts = [service.prompt(prompt) for prompt in body.prompts()]
    rooms = [service.room(prompt, body.max_tokens, "prompt", 16) for prompt in prompts]
    answers: list[Answer] = []
    try:
        for prompt, room in zip(prompts, rooms, strict=True):
            request = _request(service, body, prompt, room, adapter, body.logprobs)
            answers += service.start(request, body.stops(), body.n or 1)
    except ApiError:
        for answer in answers:
            answer.cancel()
        raise
    form = TextForm(service.token_bytes, body.model)
    return await _respond(body, answers, sum(map(len, prompts)), form)


def _request(
    service: Service, body: Body, prompt: list[int], room: int, adapter: str, top: int | None
) -> Request:
    if body.stream_options and body.stream_options.include_usage and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    biases = body.biases()
    if any(token >= service.engine.vocabulary for token in biases):
        message = f"the model has tokens 0 to {service.engine.vocabulary - 1}"
        raise ApiError(400, message, "logit_bias")
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence=body.presence_penalty or 0.0,
        frequency=body.frequency_penalty or 0.0,
        seed=body.seed,
        biases=tuple(biases.items()),
    )
    stop_ids = frozenset(service.encoder.stop_ids)
    grammar = _grammar(service, body.response_format)
    return Request(prompt, room, stop_ids, sampling, adapter, top, grammar)


def _grammar(service: Service, wanted: ResponseFormat | None) -> Grammar | None:
    if wanted is None or wanted.type == "text":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            message = "type json_schema needs json_schema: {name, schema}"
            raise ApiError(400, message, "response_format.json_schema")
        if wanted.json_schema.schema_ is not None:
            schema = wanted.json_schema.schema_
    return _following(service, schema, "response_format.json_schema.schema")


def _following(service: Service, schema: dict[str, Any], where: str) -> Grammar:
    try:
        return service.grammars.grammar(schema)
    except GrammarError as error:
        raise ApiError(400, f"the schema can't be followed: {error}", where) from None


async def _respond(body: Body, answers: list[Answer], prompt_tokens: int, form: Form) -> Response:
    if body.stream:
        tells_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = stream.events(answers, form, prompt_tokens, tells_usage)
        return await stream.begun(events)
    pieces = await stream.all_of(answers)
    usage = stream.usage(prompt_tokens, answers)
    return JSONResponse(form.whole(pieces) | {"usage": usage})
