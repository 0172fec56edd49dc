"""Requests to an OpenAI-compatible API."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import httpx

from aift_ray.errors import AiftError, ConfigError, Problem

# seconds for an answer, for a connection, and for the one token that is asked for before the start
_TIMEOUT, _CONNECT, _PROBE = 600.0, 5.0, 30.0
_TRIES = 4
_NO_API = "answers without choices: no OpenAI-compatible API"


class Unanswered(Exception):
    """A model behind a URL that does not answer.

    Attributes:
        kind: what is wrong: the address, the key, or the model's name.
    """

    def __init__(self, kind: Literal["address", "key", "model"], what: str) -> None:
        super().__init__(what)
        self.kind = kind


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
            choice = _choice(answer)
            if choice is None:
                raise AiftError(f"{self._client.base_url} {_NO_API}")
            return choice
        raise AssertionError("unreachable")

    def chat(self, messages: list[dict[str, str]], body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer to a conversation; see `choice`."""
        return self.choice("/chat/completions", {"messages": messages, **body})

    def probe(self, route: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The first choice of an answer of one token; None: the model is there, but busy.

        Raises:
            Unanswered: within seconds, with what is wrong.
        """
        url, limits = self._client.base_url, httpx.Timeout(_PROBE, connect=_CONNECT)
        asked = {"model": self.model, "max_tokens": 1, **body}
        try:
            answer = self._client.post(route, json=asked, timeout=limits)
        except httpx.ReadTimeout:
            if self.model in self._served():
                return None
            raise Unanswered("address", f"{url} gives no answer in {_PROBE:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unanswered("address", f"{url} can't be reached: {error}") from None
        status, said = answer.status_code, _said(answer)
        if status in (401, 403):
            raise Unanswered("key", f"{url} refuses the key: {status}: {said}")
        if status in (400, 404) and (served := self._served()) and self.model not in served:
            what = f"{url} has no {self.model}: {status}: {said}; it serves {', '.join(served)}"
            raise Unanswered("model", what)
        if status == 429 or (status == 400 and "max_tokens" in said):
            # it would answer later, or a longer answer
            return None
        if status >= 400:
            raise Unanswered("address", f"{url}{route.removeprefix('/')}: {status}: {said}")
        choice = _choice(answer)
        if choice is None:
            raise Unanswered("address", f"{url} {_NO_API}")
        return choice

    def _served(self) -> list[str]:
        """Names of the models; none where they are not told."""
        try:
            listed = self._client.get("/models", timeout=_CONNECT).json()["data"]
            return [str(each["id"]) for each in listed][:20]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []


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


def _choice(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        choice: dict[str, Any] = answer.json()["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return choice


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
