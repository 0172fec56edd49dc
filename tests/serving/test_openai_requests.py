"""What the server refuses: the status, OpenAI's shape, the field's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving.conftest import Site

USER = {"role": "user", "content": "こんにちは"}
CHAT: dict[str, Any] = {"model": "hina-4m", "messages": [USER]}
NESTED = '{"model": ' + "[" * 100_000


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": "../../etc"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"model": "\ud800"}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, 400, "messages.0.content"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "長" * 5000}]}, 400, "messages"),
        ({"max_tokens": 10**9}, 400, "messages"),
        ({"max_tokens": 10**400}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, 400, "max_completion_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"top_p": -0.1}, 400, "top_p"),
        ({"top_k": -7}, 400, "top_k"),
        ({"n": 17}, 400, "n"),
        ({"seed": 2**70}, 400, "seed"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"top_logprobs": 5}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"logit_bias": {"雨": 1}}, 400, "logit_bias"),
        ({"tools": {"a": 1}}, 400, "tools"),
        ({"やっほー": 1}, 400, "やっほー"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "no such type"}},
                }
            },
            400,
            "response_format",
        ),
    ],
)
def test_a_wrong_field_is_named(
    site: Site, change: dict[str, Any], status: int, param: str
) -> None:
    body = {name: value for name, value in (CHAT | change).items() if value is not None}
    for stream in (False, True):
        content = json.dumps(body | {"stream": stream}).encode()
        response = site.send("POST", "/v1/chat/completions", content=content, headers=JSON)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["param"] or "").startswith(param), error


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", NESTED.encode(), b'"x"'])
def test_what_is_no_object_is_refused(site: Site, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/generate", "/tokenize"):
        response = site.send("POST", path, content=body, headers=JSON)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_json_that_is_not_declared_as_such_says_what_to_send(site: Site) -> None:
    content = json.dumps(CHAT).encode()
    # what curl -d sends unless it is told
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body, headers in ((content, form), (b"", JSON), (b"[]", JSON)):
        response = site.send("POST", "/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 400
        assert "'Content-Type: application/json'" in response.json()["error"]["message"]


def test_stream_options_need_a_stream(site: Site) -> None:
    options = {"stream_options": {"include_usage": True}}
    response = site.send("POST", "/v1/chat/completions", json=CHAT | options)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream_options")


def test_too_long_a_prompt_says_so(site: Site) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "長" * 5000}]}
    response = site.send("POST", "/v1/chat/completions", json=body)
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
def test_wrong_routes_and_methods_keep_the_shape(
    site: Site, method: str, path: str, status: int
) -> None:
    response = site.send(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_every_route_but_health_and_page_asks_for_a_key(site: Site) -> None:
    assert site.send("GET", "/healthz", key=None).status_code == 200
    assert site.send("GET", "/", key=None).status_code == 200
    for key in (None, "", "wrong", "sk-", "秘密"):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenize", "/nothing"):
            response = site.send("GET", path, key=key)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_large_body_is_refused_declared_or_not(site: Site) -> None:
    large = b" " * (8 * 2**20 + 1)
    assert site.send("POST", "/generate", content=large, headers=JSON).status_code == 413

    async def drip() -> Any:
        for _ in range(9):
            yield b" " * 2**20

    response = site.send("POST", "/generate", content=drip(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_fields_without_effect_are_taken(site: Site) -> None:
    idle = {"user": "x", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    body = CHAT | idle | {"parallel_tool_calls": True, "max_tokens": 1}
    assert site.send("POST", "/v1/chat/completions", json=body).status_code == 200
