"""Every error of the server in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

# the routes whose errors have Anthropic's shape
ANTHROPIC = "/v1/messages"


class ApiError(Exception):
    """An answer that is an error.

    Args:
        param: the field that is wrong.
        code: OpenAI's code for it, where there is one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else _INVALID)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def anthropics(self) -> dict[str, Any]:
        """The error as Anthropic writes it."""
        kind = _TYPES.get(self.status, "api_error" if self.status >= 500 else _INVALID)
        where = f"{self.param}: " if self.param and not self.message.startswith(self.param) else ""
        return {"type": "error", "error": {"type": kind, "message": where + self.message}}

    def response(self, path: str = "") -> Response:
        """As an HTTP response; names may hold any character, so all is written in ASCII.

        Args:
            path: of the route, which may have a shape of its own.
        """
        told = self.anthropics() if path.startswith(ANTHROPIC) else self.body()
        content = json.dumps(told).encode("ascii")
        return Response(content, self.status, self.headers, "application/json")


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Have an ApiError name the fields of another route.

    Args:
        names: by the names that a chat has for them.
    """
    try:
        yield
    except ApiError as error:
        error.param = names.get(error.param or "", error.param)
        raise


_INVALID = "invalid_request_error"
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
