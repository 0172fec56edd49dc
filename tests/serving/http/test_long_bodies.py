"""Bodies with long lists: the first wrong item is told, at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.conftest import Site

USER = {"role": "user", "content": "こんにちは"}
# a time that grows with the square would be hours
MANY = 200_000


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("completions", {"prompt": [1, *["a"] * MANY]}, "prompt.1: "),
        ("completions", {"prompt": [[1], *[["a"]] * MANY]}, "prompt.1.0: "),
        ("completions", {"prompt": ["a"] * MANY}, "prompt: List should have at most 64 items"),
        ("completions", {"prompt": ["a", 5]}, "prompt.1: Input should be a valid string"),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}] * MANY}, "messages.0."),
        ("chat/completions", {"messages": [{**USER, "content": [5] * MANY}]}, "messages.0."),
        ("responses", {"input": [{"role": "user", "content": 5}] * MANY}, "input.0."),
        ("messages", {"messages": [{"role": "user", "content": 5}] * MANY}, "messages.0."),
    ],
)
def test_the_first_wrong_item_is_told(
    site: Site, path: str, change: dict[str, Any], message: str
) -> None:
    body = {"model": "hina-4m", "max_tokens": 1} | change
    if path == "responses":
        del body["max_tokens"]
    response = site.send("POST", f"/v1/{path}", json=body)
    assert response.status_code == 400
    told = response.json()["error"]["message"]
    assert told.startswith(message), told
    assert len(told) < 500


def test_a_text_that_no_context_holds_is_not_tokenized(site: Site) -> None:
    body: dict[str, Any] = {"model": "hina-4m"}
    for path, change in (
        ("completions", {"prompt": "長" * 2_000_000}),
        ("chat/completions", {"messages": [{"role": "user", "content": "長" * 2_000_000}]}),
    ):
        response = site.send("POST", f"/v1/{path}", json=body | change)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "2,000,000 characters" in error["message"]


def test_a_field_has_the_name_that_its_route_has_for_it(site: Site) -> None:
    schema = {"type": "no such type"}
    form = {"type": "json_schema", "name": "x", "schema": schema}
    asked = {"model": "hina-4m", "input": "はい", "text": {"format": form}}
    error = site.send("POST", "/v1/responses", json=asked).json()["error"]
    assert error["param"] == "text.format.schema"
    asked = {"model": "hina-4m", "input": "はい", "reasoning": {"effort": "high"}}
    error = site.send("POST", "/v1/responses", json=asked).json()["error"]
    assert error["param"] == "reasoning.effort"
    asked = {"model": "hina-4m", "input": "長" * 5000}
    error = site.send("POST", "/v1/responses", json=asked).json()["error"]
    assert error["param"] == "input"
    config = {"effort": "high"}
    asked = {"model": "hina-4m", "max_tokens": 1, "messages": [USER], "output_config": config}
    error = site.send("POST", "/v1/messages", json=asked).json()["error"]
    assert error["message"].startswith("output_config.effort: ")


def test_a_turn_of_the_assistant_may_be_empty(site: Site) -> None:
    for turn in ({"content": None}, {"content": None, "tool_calls": []}, {"content": ""}):
        messages = [USER, {"role": "assistant", **turn}, USER]
        body = {"model": "hina-4m", "messages": messages, "max_tokens": 1}
        response = site.send("POST", "/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
