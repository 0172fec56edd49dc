"""What Serve's HTTP proxies say without a replica: always in OpenAI's shape, and never a hang.

A proxy loads it by the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, so that nothing heavy
may be imported here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aift_ray.serving.api_errors import ApiError

# what a replica may take to say that it is well to who asks, and where a request depends on it
_HEALTH_S, _REPLICA_S = 3.0, 8.0
# how long a request waits for the start of its answer before it is asked whether there is a replica
_PATIENCE_S = 1.0
_HEALTH = "/healthz"
_OF_SERVE = "/-/"
_NOT_READY = "no replica can answer: the server is loading, stopping or replacing one"
log = logging.getLogger("ray.serve")


def trust(proxies: Sequence[str]) -> dict[str, str]:
    """What Serve's proxies read when they start: whose X-Forwarded headers count.

    uvicorn, which they run on, would believe every program of this machine.
    """
    return {"FORWARDED_ALLOW_IPS": ",".join(proxies)}


def middlewares() -> list[Middleware]:
    """For a server that clients reach: Serve's own routes are closed."""
    return [Middleware(Ingress)]


def middlewares_with_probe() -> list[Middleware]:
    """The same with `/-/healthz` open, which the operator of a RayService asks for."""
    return [Middleware(Ingress, probe=True)]


class Ingress:
    """ASGI middleware of a proxy.

    Args:
        app: the proxy itself.
        probe: whether Serve's `/-/healthz` stays open.
    """

    def __init__(self, app: ASGIApp, probe: bool = False) -> None:
        self._app, self._probe = app, probe
        self._asking: asyncio.Task[bool] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer 503 where no replica does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(_OF_SERVE) and not (self._probe and path == "/-/healthz"):
            # no route of Serve's any more: the replica asks for the key and knows no such route
            scope = {**scope, "path": f"{path}/"}
        answer = _Answer(send)
        task = asyncio.ensure_future(self._app(scope, receive, answer.take))
        try:
            if await self._begins(scope, answer, task):
                await task
                return
        finally:
            await _ended(task)
        error = ApiError(503, _NOT_READY, None, "not_ready", {"Retry-After": "2"})
        await error.response(scope["path"])(scope, receive, send)

    async def _begins(self, scope: Scope, answer: _Answer, task: asyncio.Task[None]) -> bool:
        """Wait for the start of the answer; whether a replica gives it."""
        asks_health = scope["path"] == _HEALTH
        begun = asyncio.ensure_future(answer.begun.wait())
        first: set[asyncio.Future[Any]] = {task, begun}
        try:
            patience = _HEALTH_S if asks_health else _PATIENCE_S
            await _one_of(first, patience)
            if not (begun.done() or task.done() or asks_health):
                asked = asyncio.ensure_future(self._answers(scope))
                await _one_of({*first, asked})
                if asked.done() and asked.result():
                    # it has the request, or had it before it began to drain
                    await _one_of(first)
        finally:
            begun.cancel()
        answer.closed |= not answer.begun.is_set()
        return not answer.closed

    async def _answers(self, scope: Scope) -> bool:
        """Whether anything answers now; requests that wait at the same time ask once."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask(scope))
        return await asyncio.shield(self._asking)

    async def _ask(self, scope: Scope) -> bool:
        begun = asyncio.Event()
        body = [{"type": "http.request", "body": b"", "more_body": False}]

        async def note(message: Message) -> None:
            begun.set()

        async def received() -> Message:
            if not body:
                # a client that stays
                await asyncio.Event().wait()
            return body.pop()

        headers = [pair for pair in scope["headers"] if pair[0] == b"host"]
        health = {
            **scope,
            "method": "GET",
            "path": _HEALTH,
            "raw_path": _HEALTH.encode(),
            "query_string": b"",
            "headers": headers,
        }
        with suppress(Exception):
            await asyncio.wait_for(self._app(health, received, note), _REPLICA_S)
        return begun.is_set()


class _Answer:
    """What goes back to the client, but for what Serve says in its own words.

    Attributes:
        begun: there is an answer, a replica's or Serve's own.
        closed: nothing is passed on.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = asyncio.Event()
        self.closed = False

    async def take(self, message: Message) -> None:
        """Pass on a message of the proxy's."""
        if message["type"] == "http.response.start":
            self.closed |= _is_serves(message)
            self.begun.set()
        if not self.closed:
            await self._send(message)


async def _one_of(tasks: set[asyncio.Future[Any]], timeout: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _ended(task: asyncio.Task[None]) -> None:
    if not task.done():
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait({task})
    if not task.cancelled() and task.exception():
        log.warning("a request was not answered to its end: %s", task.exception())


def _is_serves(start: Message) -> bool:
    """Whether an error is Serve's own: those of the application are JSON."""
    kind = dict(start.get("headers", ())).get(b"content-type", b"")
    return start["status"] >= 400 and not kind.startswith(b"application/json")
