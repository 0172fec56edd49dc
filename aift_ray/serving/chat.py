"""From a conversation to answers in the making, whatever the route that takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from aift_ray.serving import tools
from aift_ray.serving.answer import Answer
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.engines.interface import Grammar, Request, SamplingParams
from aift_ray.serving.grammar import GrammarError
from aift_ray.serving.openai_requests import ChatRequest, CompletionRequest, ResponseFormat
from aift_ray.serving.service import Service


@dataclass(frozen=True)
class Begun:
    """Answers that are being made.

    Attributes:
        names: of the functions that they may call.
    """

    answers: list[Answer]
    prompt_tokens: int
    names: list[str]


def begin(service: Service, body: ChatRequest) -> Begun:
    """Queue the answers to a conversation; ApiError where they can't be made."""
    adapter = service.adapter(body.model)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "give one of max_tokens and max_completion_tokens"
        raise ApiError(400, message, "max_completion_tokens")
    offered = tools.offered(body)
    prompt = prompt_of(service, body)
    asked = body.max_completion_tokens or body.max_tokens
    room = service.room(prompt, asked, "messages", None)
    top = (body.top_logprobs or 0) if body.logprobs else None
    request = request_of(service, body, prompt, room, adapter, top)
    call = tools.held_to(body, offered)
    if call:
        request = replace(request, grammar=_following(service, call, "tools"))
    request = _held(service, request, body.thinking_token_budget)
    answers = service.start(request, body.stops(), body.n or 1, thinks=True)
    names = [each["function"]["name"] for each in offered]
    return Begun(answers, len(prompt), names)


def prompt_of(service: Service, body: ChatRequest) -> list[int]:
    """Ids of a conversation with the tools that are offered; ApiError 400 where there are none."""
    options = service.template.of(
        body.chat_template_kwargs, body.reasoning_effort, service.thinking is not None
    )
    return service.chat_prompt(body.messages, tools.offered(body), options)


def _held(service: Service, request: Request, budget: int | None) -> Request:
    """The same request with its grammar on the answer alone and an end to its thought.

    Args:
        budget: tokens that a thought may have; None: any number.

    Raises:
        ApiError: 400, the model does not think, or its engine can't tell when it does.
    """
    thinking = service.thinking
    if thinking is None:
        if budget is not None:
            message = "this model's chat template knows no thoughts"
            raise ApiError(400, message, "thinking_token_budget")
        return request
    if request.grammar is None and budget is None:
        return request
    if not service.engine.holds_thoughts:
        if budget is not None:
            message = "the engine vllm does not limit thoughts; use --engine transformers"
            raise ApiError(400, message, "thinking_token_budget")
        if thinking.answers(request.prompt):
            return request
        message = (
            "with the engine vllm an answer whose prompt opens a thought can't be constrained to a "
            "schema or a call; use --engine transformers, or turn the thought off where the "
            "template can"
        )
        raise ApiError(400, message, "response_format")
    grammar = thinking.held(request.prompt, request.grammar, budget, request.stop_ids)
    return replace(request, grammar=grammar)


def request_of(
    service: Service,
    body: ChatRequest | CompletionRequest,
    prompt: list[int],
    room: int,
    adapter: str,
    top: int | None,
) -> Request:
    """What the engine is asked.

    Args:
        room: tokens that the answer may have.
        top: how many likeliest tokens are told with each; None: none.

    Raises:
        ApiError: 400.
    """
    if body.stream_options and body.stream_options.include_usage and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    biases = body.biases()
    if any(token >= service.engine.vocabulary for token in biases):
        message = f"the model has tokens 0 to {service.engine.vocabulary - 1}"
        raise ApiError(400, message, "logit_bias")
    sampling = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        logit_bias=tuple(biases.items()),
    )
    stop_ids = frozenset(service.encoder.stop_ids)
    grammar = _grammar(service, body.response_format)
    return Request(prompt, room, stop_ids, sampling, adapter, top, grammar)


def _grammar(service: Service, wanted: ResponseFormat | None) -> Grammar | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.value is not None and wanted.type != "json_object":
        raise ApiError(400, "only type json_object has it", "response_format.value")
    schema: dict[str, Any] = wanted.value or {"type": "object"}
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
