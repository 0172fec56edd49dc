"""Requests to an OpenAI-compatible API."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx

from aift_ray.errors import AiftError, ConfigError, Problem

# seconds for an answer
_TIMEOUT = 600.0
_TRIES = 4


class Api:
    """One model behind a URL.

    Args:
        key: sent with every request; "": none is.
    """

    def __init__(self, base_url: str, model: str, key: str) -> None:
        self.model = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"), headers=headers, timeout=_TIMEOUT
        )

    def choice(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer to a request.

        Raises:
            AiftError: the API can't be reached, or refuses.
        """
        for attempt in range(_TRIES):
            try:
                answer = self._client.post(route, json={"model": self.model, **body})
            except httpx.HTTPError as error:
                if attempt + 1 == _TRIES:
                    raise AiftError(f"{self._client.base_url} can't be reached: {error}") from None
                continue
            if answer.status_code in (429, 503) and attempt + 1 < _TRIES:
                _wait(answer)
                continue
            if answer.status_code >= 400:
                raise AiftError(f"{self._client.base_url}: {answer.status_code}: {_said(answer)}")
            try:
                choice: dict[str, Any] = answer.json()["choices"][0]
            except (ValueError, KeyError, IndexError, TypeError):
                what = "answers without choices: no OpenAI-compatible API"
                raise AiftError(f"{self._client.base_url} {what}") from None
            return choice
        raise AssertionError("unreachable")

    def chat(self, messages: list[dict[str, str]], body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer to a conversation; see `choice`."""
        return self.choice("/chat/completions", {"messages": messages, **body})


def read_key(setting: str, file: str | None, variables: tuple[str, ...]) -> str:
    """The API key of a file, or of the first variable that holds one; "" where none does.

    Raises:
        ConfigError: the file can't be read.
    """
    if not file:
        return next((os.environ[name] for name in variables if os.environ.get(name)), "")
    try:
        lines = Path(file).expanduser().read_text("utf-8").splitlines()
    except OSError as error:
        what = f"{file} can't be read: {error.strerror}"
        raise ConfigError([Problem(setting, what)]) from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return keys[0] if keys else ""


def _wait(answer: httpx.Response) -> None:
    after = answer.headers.get("retry-after", "1")
    time.sleep(min(float(after), 30.0) if after.replace(".", "").isdecimal() else 1.0)


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
