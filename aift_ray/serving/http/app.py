"""The HTTP application: routes on a Service, errors in OpenAI's shape."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from aift_ray import __version__
from aift_ray.serving import replica_broadcast as fleets
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.api_keys import Keys
from aift_ray.serving.http import anthropic_api, generate_api, openai_api, responses_api
from aift_ray.serving.http.anthropic_requests import CountRequest, MessagesRequest
from aift_ray.serving.http.auth import Guard
from aift_ray.serving.http.proxy_cors import Outside
from aift_ray.serving.http.responses_requests import ResponsesRequest
from aift_ray.serving.http.web_page import Page
from aift_ray.serving.openai_requests import (
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    LoadAdapterRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)
from aift_ray.serving.replica_broadcast import Fleet
from aift_ray.serving.service import Service

log = logging.getLogger(__name__)
NOWHERE_ELSE = Outside()


def build(
    service: Callable[[], Service],
    fleet: Fleet,
    adapter_folder: str | None,
    keys: Keys | None,
    start: Callable[[], Awaitable[None]],
    outside: Outside = NOWHERE_ELSE,
) -> FastAPI:
    """The application.

    Args:
        service: called at each request.
        adapter_folder: of the adapters that may be loaded while it runs.
        keys: None: nobody is asked for one.
        start: called once, before the first request.
        outside: how clients see the server.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await start()
        yield
        service().engine.close()

    app = FastAPI(
        title="aift-ray",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, keys=keys)
    # the last one sees a request first
    app.add_middleware(Page, asks_key=keys is not None)
    outside.add_to(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
    _add_openai(app, service)
    _add_own(app, service)
    _add_fleet(app, service, fleet, adapter_folder)
    return app


def _add_openai(app: FastAPI, service: Callable[[], Service]) -> None:
    @app.post("/v1/chat/completions", responses=_ERRORS)
    async def chat_completions(body: ChatRequest) -> Response:
        return await openai_api.chat(service(), body)

    @app.post("/v1/completions", responses=_ERRORS)
    async def completions(body: CompletionRequest) -> Response:
        return await openai_api.complete(service(), body)

    @app.post("/v1/responses", responses=_ERRORS)
    async def respond(body: ResponsesRequest) -> Response:
        return await responses_api.respond(service(), body)

    @app.post("/v1/messages", responses=_ERRORS)
    async def message(body: MessagesRequest) -> Response:
        return await anthropic_api.message(service(), body)

    @app.post("/v1/messages/count_tokens", responses=_ERRORS)
    async def count(body: CountRequest) -> Response:
        return JSONResponse(anthropic_api.count(service(), body))

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> Response:
        return JSONResponse(openai_api.models(service()))

    # names may hold a slash
    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def model(name: str) -> Response:
        return JSONResponse(openai_api.model(service(), name))


def _add_own(app: FastAPI, service: Callable[[], Service]) -> None:
    @app.post("/generate", responses=_ERRORS)
    async def generate_(body: GenerateRequest) -> Response:
        return await generate_api.generate(service(), body)

    @app.post("/tokenize", responses=_ERRORS)
    async def tokenize(body: TokenizeRequest) -> Response:
        return JSONResponse(generate_api.tokenize(service(), body))

    @app.get("/healthz", responses=_ERRORS)
    async def healthz() -> Response:
        if not service().engine.alive():
            raise ApiError(503, "the engine is stopped")
        return JSONResponse({"status": "ok"})


def _add_fleet(
    app: FastAPI, service: Callable[[], Service], fleet: Fleet, folder: str | None
) -> None:
    @app.get("/metrics", responses=_ERRORS)
    async def metrics() -> Response:
        text = await fleets.figures(fleet)
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.post("/v1/load_lora_adapter", responses=_ERRORS)
    async def load_lora_adapter(body: LoadAdapterRequest) -> Response:
        return JSONResponse(await fleets.load(service(), fleet, folder, body))

    @app.post("/v1/unload_lora_adapter", responses=_ERRORS)
    async def unload_lora_adapter(body: UnloadAdapterRequest) -> Response:
        return JSONResponse(await fleets.unload(service(), fleet, body))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no route {request.url.path}", 405: "the route has other methods"}
    message = messages.get(error.status_code, str(error.detail))
    failure = ApiError(error.status_code, message, headers=error.headers)
    return failure.response(request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [(detail["type"], *_problem(detail)) for detail in error.errors()]
    outer = {each for _, where, _ in details for each in _outer(where)}
    # of a union the kind that fits best is told, not that it is none of the others
    problems = [
        (where, what)
        for kind, where, what in details
        if not (kind.endswith("_type") and where in outer)
    ]
    message = "; ".join(f"{where}: {what}" if where else what for where, what in problems[:20])
    failure = ApiError(400, message, problems[0][0] or None, "invalid_value")
    return failure.response(request.url.path)


def _outer(where: str) -> Iterator[str]:
    """The fields that a field is in."""
    end = where.rfind(".")
    while end >= 0:
        yield where[:end]
        end = where.rfind(".", 0, end)


def _problem(detail: dict[str, Any]) -> tuple[str, str]:
    if detail["type"] == "json_invalid":
        return "", "the body is not JSON"
    place = [str(part) for part in detail["loc"][1:]]
    if not place and detail["type"] in ("missing", "model_attributes_type"):
        return "", "send a JSON object, with the header 'Content-Type: application/json'"
    # a union names the kinds that were tried
    names = [
        part
        for at, part in enumerate(place)
        if "[" not in part and part != "str" and not (at > 1 and "union[" in place[at - 2])
    ]
    if detail["type"] == "extra_forbidden":
        return ".".join(names), "there is no such field, or it is not supported"
    if detail["type"] == "none_required":
        return ".".join(names), "is not supported"
    return ".".join(names), detail["msg"].removeprefix("Value error, ")


async def _unexpected(request: Request, error: Exception) -> Response:
    log.exception("a request failed", exc_info=error)
    return ApiError(500, "the server failed at this request").response(request.url.path)


_SHAPE = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {"application/json": {"schema": _SHAPE}}}
    for status, meaning in (
        (400, "a wrong field, or a prompt that is too long"),
        (401, "no key, or a wrong one"),
        (404, "no such model"),
        (405, "a wrong method"),
        (413, "the body is too large"),
        (429, "the queue is full"),
        (500, "the server failed"),
        (503, "not ready"),
        (504, "out of time"),
    )
}
