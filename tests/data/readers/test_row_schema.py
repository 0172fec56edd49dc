"""Rows: told apart by their keys, and refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from aift_ray.data.examples import Example, Fault, Message
from aift_ray.data.readers.row_schema import find_form, make_example

USER = {"role": "user", "content": "問"}
ANSWER = {"role": "assistant", "content": "答"}
SYSTEM = {"role": "system", "content": "規則"}


def fault(row: object) -> Fault:
    item = make_example(row, "a.jsonl", 7)
    assert isinstance(item, Fault), item
    assert (item.file, item.line) == ("a.jsonl", 7)
    return item


def example(row: object) -> Example:
    item = make_example(row, "a.jsonl", 7)
    assert isinstance(item, Example), item
    assert (item.file, item.line) == ("a.jsonl", 7)
    return item


def test_an_instruction_row_keeps_its_three_texts() -> None:
    row = example({"instruction": "訳せ", "input": "猫", "output": " cat\n"})
    assert (row.kind, row.instruction, row.input, row.output) == (
        "instruction",
        "訳せ",
        "猫",
        " cat\n",
    )


@pytest.mark.parametrize("row", [{}, {"input": None}, {"input": ""}])
def test_a_missing_null_or_empty_input_is_no_input(row: dict[str, Any]) -> None:
    assert example({"instruction": "a", "output": "b", **row}).input == ""


def test_a_prompt_row_becomes_instruction_and_output() -> None:
    row = example({"prompt": "問", "completion": "答"})
    assert (row.kind, row.instruction, row.output) == ("prompt", "問", "答")


def test_a_text_row_becomes_output() -> None:
    row = example({"text": "本文"})
    assert (row.kind, row.output) == ("text", "本文")


def test_conversations_equal_messages() -> None:
    turns = [("system", "s"), ("human", "u"), ("gpt", "a"), ("user", "v"), ("assistant", "b")]
    roles = ["system", "user", "assistant", "user", "assistant"]
    chat = [{"from": who, "value": text} for who, text in turns]
    messages = tuple(Message(r, text) for r, (_, text) in zip(roles, turns, strict=True))
    row = example({"conversations": chat})
    assert row.messages == messages
    assert row == example({"messages": [{"role": m.role, "content": m.content} for m in messages]})


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "部"}, {"type": "text", "text": "品"}]
    row = example({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert row.messages[0] == Message("user", "部品")


def test_further_keys_beside_a_complete_row_are_ignored() -> None:
    assert example({"instruction": "a", "output": "b", "id": 3, "note": float("nan")})
    assert example({"messages": [{**USER, "name": "x"}, ANSWER], "source": "web"})


def test_a_lone_surrogate_in_an_ignored_key_does_no_harm() -> None:
    assert example({"text": "a", "\ud800": "\udfff"})


@pytest.mark.parametrize(
    ("row", "reason", "remedy"),
    [
        ({"instructions": "a", "output": "b"}, "instruction is missing", '"instruction"?'),
        ({"Instruction": "a", "output": "b"}, "instruction is missing", '"instruction"?'),
        ({"instruction": "a", "response": "b"}, '"response"', "needs the keys instruction and out"),
        ({"prompt": "a", "completions": "b"}, "completion is missing", '"completion"?'),
        ({"txt": "a"}, '"txt"', '"text"?'),
        ({"質問": "a"}, '"質問"', "expected instruction and output; or messages"),
        ({}, "has no key", "expected instruction"),
        ({"input": "a"}, "instruction and output is missing", "needs the keys"),
        ({"\ud800": 1}, "unknown keys", "expected"),
    ],
)
def test_a_missing_key_is_named_with_the_nearest_known_one(
    row: object, reason: str, remedy: str
) -> None:
    found = fault(row)
    assert reason in found.reason
    assert remedy in found.remedy
    (found.reason + found.remedy).encode("utf-8")


@pytest.mark.parametrize(
    ("row", "both"),
    [
        ({"instruction": "a", "output": "b", "text": "c"}, "instruction, output and text"),
        ({"text": "c", "messages": []}, "text and messages"),
        ({"messages": [], "conversations": []}, "messages and conversations"),
        ({"instruction": "a", "completion": "b"}, "instruction and completion"),
    ],
)
def test_keys_of_two_kinds_are_wrong(row: object, both: str) -> None:
    assert fault(row).reason == f"keys of two kinds of row: {both}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "null"),
        ("", "empty"),
        (" \u3000\n", "only white space"),
        (3, "a number"),
        (0.5, "a number"),
        (True, "a boolean"),
        (["a"], "a list"),
        ({"a": 1}, "an object"),
        (b"a", "bytes"),
        ("a\ud83d", "lone surrogate U+D83D"),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "X", "output": "b"},
        {"instruction": "a", "output": "X"},
        {"prompt": "X", "completion": "b"},
        {"prompt": "a", "completion": "X"},
        {"text": "X"},
    ],
)
def test_a_value_that_is_no_text_is_named(row: dict[str, str], value: object, said: str) -> None:
    wrong = {key: value if text == "X" else text for key, text in row.items()}
    name = next(key for key, text in row.items() if text == "X")
    assert fault(wrong).reason.startswith(name)
    assert said in fault(wrong).reason


@pytest.mark.parametrize("value", [3, False, ["a"]])
def test_an_input_that_is_no_string_is_wrong(value: object) -> None:
    found = fault({"instruction": "a", "output": "b", "input": value})
    assert found.reason.startswith("input is a")


@pytest.mark.parametrize(
    ("row", "said"), [([], "a list"), ("a", "a string"), (1, "a number"), (None, "null")]
)
def test_a_row_that_is_no_object_is_wrong(row: object, said: str) -> None:
    assert fault(row).reason == f"the row is {said}, expected an object"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("文字列", "messages is a string, expected a list"),
        ([], "messages has no message"),
        (["a"], "message 1 is a string"),
        ([{"role": "robot", "content": "a"}, ANSWER], 'message 1: unknown role "robot"'),
        ([{"role": 1, "content": "a"}, ANSWER], "message 1: role is a number"),
        ([{"role": "user"}, ANSWER], "message 1: the key content is missing"),
        ([SYSTEM, USER], "no assistant message"),
        ([USER, {"role": "assistant", "content": None}], "message 2: content is null"),
        ([USER, {"role": "assistant", "content": " "}], "message 2: content is only white space"),
        ([{"role": "user", "content": ""}, ANSWER], "message 1: content is empty"),
        ([USER, {"role": "assistant", "content": "\udc00"}], "lone surrogate U+DC00"),
        ([ANSWER, USER, ANSWER], "message 1 is from assistant, expected user"),
        ([USER, SYSTEM, ANSWER], "message 2 is a system message"),
        ([SYSTEM, SYSTEM, USER, ANSWER], "message 2 is a system message"),
        ([USER, USER, ANSWER], "message 2 is from user, expected assistant"),
        ([SYSTEM, USER, ANSWER, ANSWER], "message 4 is from assistant, expected user"),
        ([USER, ANSWER, USER], "the last message is from user"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "part 1 is no text part"),
        ([{"role": "user", "content": ["a"]}, ANSWER], "part 1 is no text part"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}, ANSWER], "text is a number"),
        ([{"role": "user", "content": []}, ANSWER], "content is empty"),
    ],
)
def test_wrong_messages_are_named(messages: object, reason: str) -> None:
    assert reason in fault({"messages": messages}).reason


def test_keys_of_messages_under_conversations_are_pointed_out() -> None:
    assert "keys of messages" in fault({"conversations": [USER, ANSWER]}).remedy
    assert "keys of conversations" in fault({"messages": [{"from": "human", "value": "a"}]}).remedy


def test_an_unknown_speaker_is_wrong() -> None:
    row = {"conversations": [{"from": "chatbot", "value": "a"}]}
    assert 'unknown from "chatbot"' in fault(row).reason


def test_find_form_names_the_form_of_complete_columns() -> None:
    assert find_form(["id", "output", "instruction"]).keys == ("instruction", "output", "input")
