"""The web page: its files, held in memory, and what a browser may do with them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from aift_ray.serving.api_errors import ApiError

_FOLDER = Path(__file__).parents[1] / "page"
_KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # nothing but the page's own files, nothing inline, nothing from another host; with no trusted
    # type to be had, the browser refuses whatever would turn a text into HTML or a script
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


_METHODS = ("GET", "HEAD")


class Page:
    """ASGI middleware: answers `/` and `/page/FILE`, for which nobody needs a key.

    Args:
        asks_key: whether the routes behind it ask for one; the page then does too.
    """

    def __init__(self, app: ASGIApp, asks_key: bool) -> None:
        self._app = app
        files = [path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _KINDS]
        texts = {
            f"/page/{path.relative_to(_FOLDER).as_posix()}": path.read_text(encoding="utf-8")
            for path in files
        }
        index = texts.pop("/page/index.html")
        if not asks_key:
            index = index.replace('data-asks-key="yes"', 'data-asks-key="no"')
        self._responses = {name: _response(text, name) for name, text in texts.items()}
        self._responses["/"] = _response(index, "index.html")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        response = None
        # no path is ever opened: only names that were there at the start are known
        if scope["type"] == "http":
            response = self._responses.get(scope["path"])
        if response and scope["method"] not in _METHODS:
            error = ApiError(405, "the route has other methods", headers={"Allow": "GET, HEAD"})
            response = error.response(scope["path"])
        tag = response.headers.get("ETag") if response else None
        if response and tag and Headers(scope=scope).get("If-None-Match") == tag:
            response = Response(status_code=304, headers=_HEADERS | _tag(response))
        await (response or self._app)(scope, receive, send)


def _response(text: str, name: str) -> Response:
    # browsers ask each time, and get the file only where it changed
    tag = {"ETag": f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'}
    return Response(text, headers=_HEADERS | tag, media_type=_KINDS[Path(name).suffix])


def _tag(response: Response) -> dict[str, str]:
    return {"ETag": response.headers["ETag"]}
