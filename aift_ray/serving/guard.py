"""What every request passes before a route sees it: its key, the size of its body."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aift_ray.serving.failures import ApiError
from aift_ray.serving.keys import Keys

BODY_LIMIT = 8 * 2**20
_OPEN = ("/", "/healthz")


class _TooLarge(Exception):
    pass


class Guard:
    """ASGI middleware; `keys` None lets everyone in."""

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 413, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._admitted(scope, headers):
            message = "give a valid API key: 'Authorization: Bearer KEY'"
            asked = {"WWW-Authenticate": "Bearer"}
            error = ApiError(401, message, None, "invalid_api_key", asked)
            await error.response()(scope, receive, send)
            return
        await self._limited(scope, headers, receive, send)

    def _admitted(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        if self._keys is None or (scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD")):
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        text = key.strip().decode("utf-8", "surrogateescape")
        return scheme.lower() == b"bearer" and self._keys.accepts(text)

    async def _limited(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        seen, begun = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_LIMIT:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if _declared(headers.get(b"content-length")) > BODY_LIMIT:
                raise _TooLarge
            await self._app(scope, counted, noted)
        except _TooLarge:
            if begun:
                raise
            message = f"the body may have {BODY_LIMIT:,} bytes"
            await ApiError(413, message, None, "body_too_large").response()(scope, receive, send)


def _declared(length: Any) -> int:
    return int(length) if length and length.isdigit() else 0
