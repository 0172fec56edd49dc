"""What a proxy says where no replica answers, with an application in place of Serve's proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aift_ray.ray_backend import serve_ingress

Route = Callable[[], Awaitable[Response | None]]


class Proxy:
    """Answers each path by a function; None: it ends without an answer, as a dead replica does."""

    def __init__(self, **routes: Route) -> None:
        self.routes = {f"/{name}": route for name, route in routes.items()}
        self.asked: list[str] = []
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        try:
            response = await self.routes.get(scope["path"], nothing)()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if response:
            await response(scope, receive, send)


async def nothing() -> Response:
    return PlainTextResponse("Path not found. Ping http://.../-/routes", 404)


async def never() -> Response:
    await asyncio.Event().wait()
    raise AssertionError


async def well() -> Response:
    return JSONResponse({"status": "ok"})


def get(proxy: Proxy, path: str, probe: bool = False) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(serve_ingress.Ingress(proxy, probe))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await asyncio.wait_for(client.get(path), 5)

    return asyncio.run(asked())


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_ingress, "_HEALTH_S", 0.2)
    monkeypatch.setattr(serve_ingress, "_REPLICA_S", 0.3)
    monkeypatch.setattr(serve_ingress, "_PATIENCE_S", 0.1)


def is_not_ready(response: httpx.Response) -> bool:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert int(response.headers["retry-after"]) > 0
    return response.status_code == 503 and error["code"] == "not_ready"


async def dies() -> Response | None:
    return None


async def fails() -> Response:
    raise RuntimeError("the actor died")


async def overloaded() -> Response:
    return PlainTextResponse("Too many requests", 503)


@pytest.mark.parametrize("route", [nothing, never, dies, fails, overloaded])
def test_what_serve_says_itself_and_what_hangs_is_503(route: Route) -> None:
    proxy = Proxy(healthz=route, work=route)
    for path in ("/healthz", "/work"):
        assert is_not_ready(get(proxy, path))


def test_what_hangs_is_cancelled() -> None:
    proxy = Proxy(healthz=never, work=never)
    get(proxy, "/work")
    # the request and the question whether there is a replica
    assert proxy.asked == ["/work", "/healthz"]
    assert proxy.cancelled == 2


def test_a_replicas_errors_are_its_own() -> None:
    async def missing() -> Response:
        return JSONResponse({"error": "no such model"}, 404)

    response = get(Proxy(work=missing), "/work")
    assert (response.status_code, response.json()) == (404, {"error": "no such model"})


@pytest.mark.parametrize("health", [well, nothing])
def test_a_slow_request_is_waited_for_where_anything_answers(health: Route) -> None:
    # while a server drains, its route is gone and requests under way are answered
    async def slow() -> Response:
        await asyncio.sleep(0.6)
        return JSONResponse({"done": True})

    proxy = Proxy(healthz=health, work=slow)
    assert get(proxy, "/work").json() == {"done": True}
    assert proxy.cancelled == 0


def test_a_stream_passes_piece_by_piece() -> None:
    async def pieces() -> Any:
        for number in range(3):
            await asyncio.sleep(0.15)
            yield f"{number}"

    async def streamed() -> Response:
        return StreamingResponse(pieces())

    assert get(Proxy(work=streamed), "/work").text == "012"


def test_serves_own_routes_become_paths_that_nobody_knows() -> None:
    proxy = Proxy()
    for path in ("/-/routes", "/-/healthz"):
        assert is_not_ready(get(proxy, path))
    assert proxy.asked == ["/-/routes/", "/-/healthz/"]
    proxy.routes["/-/healthz"] = well
    assert get(proxy, "/-/healthz", probe=True).status_code == 200
    assert is_not_ready(get(proxy, "/-/routes", probe=True))
    assert proxy.asked[-2:] == ["/-/healthz", "/-/routes/"]


def test_the_callbacks_give_what_serve_takes() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return as validated

    for made in (serve_ingress.middlewares(), serve_ingress.middlewares_with_probe()):
        [middleware] = validated(made)
        assert isinstance(middleware.cls(Proxy(), **middleware.kwargs), serve_ingress.Ingress)
