"""Calls that a row's tools do not offer are counted by what is odd about them."""

from __future__ import annotations

import json
from typing import Any

from aift_ray.data.examples import Example
from aift_ray.data.prompts.odd_calls import odd_calls
from aift_ray.data.prompts.prompt_notes import told
from aift_ray.data.readers.row_schema import make_example
from tests.data.prompts.test_conversations import ASKED, RESULT, ROUND, SAID, WEATHER, call


def odd(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[str]:
    row = {"messages": messages} | ({"tools": tools} if tools else {})
    found = make_example(row, "rows.jsonl", 1)
    assert isinstance(found, Example), found
    keys = odd_calls(found.messages, json.loads(found.tools or "[]"))
    assert all(label == "tool calls" for label, _ in told(dict.fromkeys(keys, 1)))
    return [line for _, line in told(dict.fromkeys(keys, 1))]


def asked(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [ASKED, {"role": "assistant", "content": None, "tool_calls": list(calls)}, RESULT, SAID]


def with_arguments(**arguments: str) -> dict[str, Any]:
    return call("") | {"function": {"name": "weather", "arguments": arguments}}


def changed(**parameters: Any) -> list[dict[str, Any]]:
    function = WEATHER["function"]
    function = function | {"parameters": function["parameters"] | parameters}
    return [{"type": "function", "function": function}]


def test_calls_as_they_are_offered_are_told_of_in_no_way() -> None:
    assert odd(ROUND, [WEATHER]) == []
    assert odd(ROUND[:2], [WEATHER]) == [], "a call that ends the row needs no result"
    assert (
        odd(asked(with_arguments(town="大阪", day="今日")), changed(additionalProperties=True))
        == []
    )
    assert odd([ASKED, SAID], [WEATHER]) == []


def test_each_oddity_is_told_with_the_names() -> None:
    other = [{"type": "function", "function": {"name": "wether"}}]
    (line,) = odd(ROUND, other)
    assert "not among the row's tools: weather (1 row)" in line
    undeclared, missing = odd(asked(with_arguments(city="大阪")), [WEATHER])
    assert "does not declare: weather.city (1 row)" in undeclared
    assert "requires: weather.town (1 row)" in missing
    (line,) = odd(asked(call("大阪"), call("京都", "abc123dez")), [WEATHER])
    assert "no result: weather (1 row)" in line


def test_rows_without_tools_are_told_of_unless_their_system_text_names_the_function() -> None:
    (line,) = odd(ROUND)
    assert "rows without tools" in line
    system = {"role": "system", "content": "道具: weather(town)"}
    assert odd([system, *ROUND]) == []


def test_two_calls_of_a_message_with_one_id_are_a_wrong_row() -> None:
    found = make_example({"messages": asked(call("大阪"), call("京都"))}, "rows.jsonl", 1)
    assert 'two calls have the id "abc123def"' in found.reason  # type: ignore[union-attr]
