"""How a server is reached: behind a proxy under a path of it, and by pages of other origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from aift_ray.config import ServingConfig
from aift_ray.serving.api_errors import ApiError


@dataclass(frozen=True)
class Outside:
    """How clients see the server.

    Attributes:
        root_path: where a proxy has put it, such as /llm; "": at the root.
        origins: whose pages a browser lets ask; "*": everybody's.
    """

    root_path: str = ""
    origins: Sequence[str] = ()

    @classmethod
    def of(cls, config: ServingConfig) -> Outside:
        """What the settings say of it."""
        return cls(config.root_path, config.allowed_origins)

    def add_to(self, app: FastAPI) -> None:
        """Put it around an application, as the first that sees a request."""
        if self.origins:
            # keys are sent in a header, never as a cookie: no credentials
            options: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
            options |= {"expose_headers": ["Retry-After"], "max_age": 600}
            app.add_middleware(Cors, allow_origins=list(self.origins), **options)
        if self.root_path:
            app.add_middleware(UnderPath, root_path=self.root_path)


class Cors(CORSMiddleware):
    """What a browser may ask; a refusal has the shape of every error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer whether a page of an origin may ask."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        reason = bytes(response.body).decode()
        return ApiError(response.status_code, reason, headers={"Vary": "Origin"}).response()


class UnderPath:
    """ASGI middleware: takes paths with the proxy's and without, whichever the proxy sends on."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on without the proxy's path."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path == self._root:
            # the page names its files from where it is
            await RedirectResponse(f"{self._root}/")(scope, receive, send)
            return
        inner = path.removeprefix(self._root) if path.startswith(f"{self._root}/") else path
        changed = {**scope, "path": inner, "raw_path": inner.encode(), "root_path": self._root}
        await self._app(changed, receive, send)
