"""Keys that change what is trained: read in the forms in which data has them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from aift_ray.data.duplicates import DuplicateCounter
from aift_ray.data.examples import Example, Fault, Message
from aift_ray.data.readers.row_schema import make_example
from aift_ray.data.readers.sources import read_examples

USER = {"role": "user", "content": "問"}
ANSWER = {"role": "assistant", "content": "答"}
CALL = {"id": "a1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a1", "content": "一"}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOL = {"name": "f", "description": "何か", "parameters": PARAMETERS}


def example(row: dict[str, Any]) -> Example:
    item = make_example(row, "a.jsonl", 7)
    assert isinstance(item, Example), item
    return item


def chat(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


def test_tools_have_the_form_in_which_serving_gets_them() -> None:
    wanted = [{"type": "function", "function": TOOL}]
    mixed = {"parameters": TOOL["parameters"], "name": "f", "strict": True, "description": "何か"}
    for tools in (wanted, [TOOL], json.dumps([TOOL]), [json.dumps(mixed)]):
        found = example(chat(USER, ANSWER, tools=tools)).tools
        assert json.dumps(json.loads(found)) == json.dumps(wanted)
    [bare] = json.loads(example(chat(USER, ANSWER, tools=[{"name": "g"}])).tools)
    assert bare["function"]["parameters"]["additionalProperties"] is False


def test_other_names_of_keys_are_read_too() -> None:
    assert example(chat(USER, ANSWER, functions=[TOOL])) == example(
        chat(USER, ANSWER, tools=[TOOL])
    )
    one = {"instruction": "問", "output": "答"}
    assert example({**one, "system_prompt": "規則"}) == example({**one, "system": "規則"})
    assert example({**one, "reasoning": "考"}).thought == "考"
    assert example({"text": "文", "functions": [TOOL], "reasoning": "考"}).unused == (
        "functions",
        "reasoning_content",
    )


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            chat(USER, {**CALLED, "tool_calls": [{"name": "f", "arguments": [1]}]}),
            '"arguments": {"KEY": VALUE}',
        ),
        (chat(USER, {**CALLED, "tool_calls": "f(1)"}), "as JSON has them"),
        (chat(USER, {**CALLED, "tool_calls": 3}), 'write each call as {"name": "NAME"'),
        (chat(USER, ANSWER, tools={"f": TOOL}), '"tools": [{"name": "NAME"'),
        (chat(USER, ANSWER, functions=3), '"functions": [{"name": "NAME"'),
        (chat(USER, ANSWER, tools=[{"name": "f", "parameters": [1]}]), '"type": "object"'),
        (chat(USER, ANSWER, history={"a": "b"}), '"history": [["QUESTION", "ANSWER"], ...]'),
        ({"messages": "問"}, '"messages": [{"role": "user", "content": "TEXT"}, {"role": "assist'),
        ({"conversations": [3]}, '"conversations": [{"from": "human", "value": "TEXT"}'),
        (chat(USER, {"role": "bot9", "content": "x"}), '"role": "system"'),
        (chat(USER, ANSWER, USER), "remove that message, or add the answer"),
        (chat(USER, {**ANSWER, "weight": 2}), '"weight": 1 to train the answer, 0 to leave'),
        ({"instruction": 3, "output": "x"}, 'write it in quotes: "3"'),
    ],
)
def test_a_remedy_is_as_it_is_typed(row: dict[str, Any], remedy: str) -> None:
    item = make_example(row, "a.jsonl", 7)
    assert isinstance(item, Fault)
    assert remedy in item.remedy, item


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null"])
def test_empty_values_ask_for_nothing(nothing: Any) -> None:
    plain = example(chat(USER, ANSWER))
    assert example(chat(USER, ANSWER, tools=nothing, history=nothing, images=None)) == plain
    empty = {"tool_calls": None, "reasoning_content": "", "name": None, "weight": None}
    assert example(chat({**USER, "name": ""}, {**ANSWER, **empty}, system="")) == plain


@pytest.mark.parametrize(
    "called",
    [
        {"tool_calls": [{"id": "a1", "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"tool_calls": [{"id": "a1", "name": "f", "arguments": '{"x": 1}'}], "content": ""},
        {"tool_calls": json.dumps([CALL])},
    ],
)
def test_calls_in_other_forms_are_the_same(called: dict[str, Any]) -> None:
    turns = [USER, {"role": "assistant", **called}, RESULT, ANSWER]
    assert example(chat(*turns)) == example(chat(USER, CALLED, RESULT, ANSWER))


def test_results_are_linked_to_calls_that_have_no_id() -> None:
    spoken = [
        {"from": "human", "value": "問"},
        {"from": "function_call", "value": '[{"name": "f"}, {"name": "g", "arguments": {}}]'},
        {"from": "observation", "value": "一"},
        {"from": "observation", "value": "二"},
        {"from": "gpt", "value": "答"},
    ]
    _, called, one, two, _ = example({"conversations": spoken}).messages
    ids = [each["id"] for each in json.loads(called.further)["tool_calls"]]
    assert [json.loads(each.further)["tool_call_id"] for each in (one, two)] == ids
    assert len({*ids}) == 2
    assert (called.role, called.content, one.role) == ("assistant", "", "tool")


def test_older_names_of_roles_and_calls() -> None:
    call = {"name": "f", "arguments": '{"x": 1}'}
    turns = [
        {"role": "developer", "content": "規則"},
        USER,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "一"},
        ANSWER,
    ]
    assert [each.role for each in example(chat(*turns)).messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_system_and_history_stand_before_the_row() -> None:
    row = example(chat(USER, ANSWER, system="規則", history=[["前", "後"]]))
    assert [(each.role, each.content) for each in row.messages] == [
        ("system", "規則"),
        ("user", "前"),
        ("assistant", "後"),
        ("user", "問"),
        ("assistant", "答"),
    ]
    same = chat({"role": "system", "content": "規則"}, USER, ANSWER, system="規則")
    assert len(example(same).messages) == 3
    plain = example(
        {"instruction": "問", "output": "答", "thinking": "考", "history": '[["前","後"]]'}
    )
    assert plain.messages == (Message("user", "前"), Message("assistant", "後"))
    assert plain.thought == "考"


@pytest.mark.parametrize(
    ("flag", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"train": False}, False),
        ({"training": False}, False),
        ({"loss": True}, True),
        ({"weight": None}, True),
    ],
)
def test_a_message_says_whether_it_is_trained(flag: dict[str, Any], trained: bool) -> None:
    row = example(chat(USER, {**ANSWER, **flag}, USER, ANSWER))
    assert [each.trained for each in row.messages] == [True, trained, True, True]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(USER, {**ANSWER, "weight": 0.5}), "message 2: weight is 0.5, expected 0 or 1"),
        (chat(USER, {**ANSWER, "train": "no"}), "message 2: train is a string"),
        (chat(USER, {**ANSWER, "weight": 1, "train": False}), "contradict each other"),
        (chat({**USER, "train": True}, ANSWER), "only answers are trained"),
        (chat(USER, {**ANSWER, "weight": 0}), "no answer is trained"),
        (chat(USER, ANSWER, weight=0.5), "weight 0.5 of a row"),
        (chat(USER, ANSWER, weight=0), "weight 0 of a row"),
        (chat(USER, ANSWER, system="甲", system_prompt="乙"), "system and system_prompt differ"),
        (chat(USER, ANSWER, images=["a.png"]), "images is not supported"),
        (chat({**USER, "images": ["a"]}, ANSWER), "message 1: images is not supported"),
        (chat(USER, ANSWER, tools={"name": "f"}), "tools is an object, expected a list"),
        (chat(USER, ANSWER, tools="[{]"), "tools is text that is not JSON"),
        (chat(USER, ANSWER, tools=[{"description": "a"}]), "tool 1: the name"),
        (chat(USER, ANSWER, tools=[{"type": "retrieval"}]), 'tool 1: type is "retrieval"'),
        (chat(USER, ANSWER, tools=[TOOL, TOOL]), 'two tools have the name "f"'),
        (chat(USER, ANSWER, tools='[{"name": "f", "name": "g"}]'), 'key "name" is repeated'),
        (chat(USER, ANSWER, reasoning_content="考"), "belongs into the message from assistant"),
        (chat({**USER, "reasoning_content": "考"}, ANSWER), "expected from assistant only"),
        (chat(USER, {**ANSWER, "thinking": "甲", "reasoning": "乙"}), "expected one thought"),
        (chat(USER, {**ANSWER, "reasoning_content": 1}), "reasoning_content is a number"),
        (chat({**USER, "tool_calls": [CALL]}, ANSWER), "tool_calls in a message from user"),
        (chat(USER, CALLED, ANSWER), "message 3 is from assistant, expected tool"),
        (chat(USER, CALLED, USER, ANSWER), "message 3 is from user, expected tool"),
        (chat(USER, CALLED, RESULT), "the last message is from tool"),
        (chat(USER, RESULT, ANSWER), "message 2 from tool has the tool_call_id"),
        (chat(USER, ANSWER, {"role": "tool", "content": "一"}, ANSWER), "answers no call"),
        (chat(USER, CALLED, {**RESULT, "tool_call_id": "b"}, ANSWER), 'tool_call_id "b"'),
        (chat(USER, {**CALLED, "tool_calls": [{"name": "f", "arguments": "{"}]}), "not JSON"),
        (chat(USER, {**CALLED, "tool_calls": [{"name": "f", "arguments": 1}]}), "a number"),
        (chat(USER, {**CALLED, "tool_calls": [{"arguments": {}}]}), "the name of the function"),
        (chat(USER, {**CALLED, "tool_calls": 3}), "tool_calls is a number"),
        (chat(USER, CALLED, {**RESULT, "content": {"a": 1}}, ANSWER), "content is an object"),
        (chat(USER, ANSWER, chat_template_kwargs={"tools": []}), "can't set tools"),
        (chat(USER, ANSWER, chat_template_kwargs=[1]), "is a list, expected an object"),
        (chat(USER, ANSWER, history=[["問"]]), "history: pair 1"),
        (chat({"role": "system", "content": "a"}, USER, ANSWER, system="b"), "two system texts"),
    ],
)
def test_wrong_keys_are_named(row: dict[str, Any], reason: str) -> None:
    item = make_example(row, "a.jsonl", 7)
    assert isinstance(item, Fault)
    assert reason in item.reason
    # what to do is said of each
    assert item.remedy


def test_a_value_that_is_not_a_call_is_wrong() -> None:
    spoken = [{"from": "human", "value": "問"}, {"from": "function_call", "value": "天気"}]
    item = make_example({"conversations": spoken}, "a.jsonl", 7)
    assert isinstance(item, Fault)
    assert "not JSON" in item.reason


def test_raw_rows_count_what_they_have_no_place_for() -> None:
    assert example({"text": "本文", "system": "規則", "tools": []}).unused == ("system",)
    row = {"prompt": "問", "completion": "答", "thinking": "考", "history": [["a", "b"]]}
    assert example(row).unused == ("history", "reasoning_content")


def test_keys_that_nothing_reads_are_kept_by_name() -> None:
    turn = {**ANSWER, "loss_mask": 0, "weight": 1, "refusal": None, "name": "a"}
    row = chat(USER, turn, {**USER, "id": 3}, {**ANSWER, "loss_mask": 1}, source="x", note="", k=[])
    assert example(row).ignored == ("source", "messages.loss_mask", "messages.id")
    found = example(
        {"instruction": "問", "output": "答", "input": "", "context": "文", "ok": False}
    )
    assert found.ignored == ("context", "ok")
    assert example({"text": "本文", "system": "規則"}).ignored == ()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_repeated_key_is_a_wrong_row(tmp_path: Path, name: str) -> None:
    good = '{"instruction": "a", "output": "b"}'
    rows = [
        good,
        '{"instruction": "a", "output": "b", "output": "c"}',
        '{"messages": [{"role": "user", "role": "user", "content": "a"}]}',
        good,
    ]
    text = "\n".join(rows) if name.endswith("l") else f"[{','.join(rows)}]"
    path = tmp_path / name
    path.write_text(text, "utf-8")
    items = list(read_examples([path]))
    assert [isinstance(item, Fault) for item in items] == [False, True, True, False]
    reasons = [item.reason for item in items if isinstance(item, Fault)]
    assert 'the key "output" is repeated' in reasons[0]
    assert 'the key "role" is repeated' in reasons[1]


def test_columns_hold_the_same_keys(tmp_path: Path) -> None:
    messages = [USER, CALLED, RESULT, ANSWER]
    wanted = example(chat(*messages, tools=[TOOL]))
    # the objects of a column all have the keys of all, with null where a row has none
    arguments = {"function": {"name": "g", "arguments": {"y": 2}}}
    others = [USER, {"role": "assistant", "tool_calls": [arguments]}]
    called = [USER, {**CALLED, "tool_calls": [{**CALL, "function": {"name": "f",
              "arguments": {"x": 1}}}]}, RESULT, ANSWER]  # fmt: skip
    columns = {"messages": [called, others], "tools": [[TOOL], None], "system": [None, "規則"]}
    table = pa.table(columns)
    parquet.write_table(table, tmp_path / "rows.parquet")
    found, other = read_examples([tmp_path / "rows.parquet"])
    assert isinstance(found, Example), found
    assert isinstance(other, Example), other
    assert json.loads(other.messages[-1].further)["tool_calls"][0]["function"] == {
        "name": "g",
        "arguments": {"y": 2},
    }
    assert (found.messages, found.tools) == (wanted.messages, wanted.tools)
    sheet = tmp_path / "rows.csv"
    sheet.write_text(
        'instruction,output,system,weight,history\n問,答,規則,1,"[[""前"",""後""]]"\n', "utf-8"
    )
    [row] = read_examples([sheet])
    assert isinstance(row, Example), row
    assert [each.content for each in row.messages] == ["規則", "前", "後"]


def test_rows_that_differ_in_their_tools_are_no_duplicates(tmp_path: Path) -> None:
    counter = DuplicateCounter(tmp_path)
    counter.add_train(example(chat(USER, ANSWER, tools=[TOOL])))
    counter.add_train(example(chat(USER, ANSWER)))
    assert counter.warnings() == []
    counter.add_train(example(chat(USER, ANSWER)))
    assert len(counter.warnings()) == 1
