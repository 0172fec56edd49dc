"""What every request passes before a route sees it: its key, its method, the size of its body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.api_keys import Keys

BODY_LIMIT = 8 * 2**20
_OPEN = ("/", "/healthz")


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
            await error.response(scope["path"])(scope, receive, send)
            return
        body = None
        if _declared(headers.get(b"content-length")) <= BODY_LIMIT:
            body = await _body(receive)
        if body is None:
            message = f"the body may have {BODY_LIMIT:,} bytes at most"
            error = ApiError(413, message, None, "body_too_large")
            await error.response(scope["path"])(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self._app(scope, _after(body, receive), send)

    def _admitted(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        if self._keys is None or (scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD")):
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            # as Anthropic's clients send it
            key = headers.get(b"x-api-key", b"")
        text = key.strip().decode("utf-8", "surrogateescape")
        return bool(text) and self._keys.accepts(text)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_LIMIT:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _without_body(send: Send) -> Send:
    """Passes on what a GET is answered, but for the body."""

    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return sent


def _after(body: bytes, receive: Receive) -> Receive:
    """Gives the body, then what comes after it, which is the client going away."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


def _declared(length: bytes | None) -> int:
    return int(length) if length and length.isdigit() else 0
