"""Thoughts: told apart from answers, limited, and free of what answers are held to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.scripted_engine import ASK, Model, ScriptedEngine

SCHEMA = {
    "type": "object",
    "properties": {"答": {"const": "東京"}},
    "required": ["答"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def model() -> Callable[..., Model]:
    made: dict[Any, Model] = {}

    def of(*kind: Any) -> Model:
        if kind not in made:
            made[kind] = Model(*kind)
        return made[kind]

    return of


Models = Callable[..., Model]
KINDS = [("r1", "bpe"), ("r1", "metaspace"), ("r1", "bpe", True), ("qwen3", "bpe")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("script", "thought", "answer"),
    [
        ("首都を問われている。\n</think>\n\n東京です。", "首都を問われている。", "東京です。"),
        ("\n\n</think>\n\n東京です。", "", "東京です。"),
        ("</think>東京 です", "", "東京 です"),
        ("a < b </thin と\n\n 考え </think>  はい </think> です", "a < b </thin と\n\n 考え",
         "はい </think> です"),
        ("考え続ける", "考え続ける", ""),
    ],
)  # fmt: skip
def test_the_thought_is_told_apart(
    model: Models, kind: tuple[Any, ...], script: str, thought: str, answer: str
) -> None:
    one = model(*kind)
    opened = "" if kind[0] == "r1" else "<think>\n"
    said = one.message(opened + script)
    assert said.get("reasoning_content", "") == thought
    assert (said["content"] or "") == answer
    assert said["finish"] == "stop"


def test_letters_that_are_spread_over_tokens_come_whole(model: Models) -> None:
    one = model("r1", "bpe")
    thought, answer = "窶🐈と𠮟", "🐈窶です"
    said = one.message(f"{thought}</think>{answer}")
    assert (said["reasoning_content"], said["content"]) == (thought, answer)
    deltas = one.deltas(f"{thought}</think>{answer}")
    assert not any("\ufffd" in text for delta in deltas for text in delta.values() if text)
    assert len([delta for delta in deltas if delta.get("reasoning_content")]) > 2


def test_a_model_that_need_not_think_may_answer_at_once(model: Models) -> None:
    one = model("qwen3", "bpe")
    for answer in ("東京です。", " <thi", "<table>", " はい"):
        said = one.message(answer)
        assert (said["content"], "reasoning_content" in said) == (answer, False)


def test_tokens_of_the_thought_are_counted(model: Models) -> None:
    one = model("r1", "bpe")
    usage = one.send("考え</think>答え").json()["usage"]
    thought = len(one.ids("考え</think>"))
    assert usage["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert usage["completion_tokens"] == thought + len(one.ids("答え")) + 1
    assert "completion_tokens_details" not in model("qwen3", "bpe").send("答え").json()["usage"]


@pytest.mark.parametrize("kind", [*KINDS, ("harmony", "bpe")])
def test_stop_strings_act_on_the_answer(model: Models, kind: tuple[Any, ...]) -> None:
    one = model(*kind)
    thought = "次に、終わりとは。"
    script = {
        "r1": f"{thought}</think>はい。終わり。",
        "qwen3": f"<think>{thought}</think>はい。終わり。",
        "harmony": f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
        "<|channel|>final<|message|>はい。終わり。",
    }[kind[0]]
    said = one.message(script, stop=["終わり"])
    assert said["reasoning_content"] == thought
    assert (said["content"], said["finish"]) == ("はい。", "stop")


@pytest.mark.parametrize("kind", [*KINDS, ("harmony", "bpe")])
@pytest.mark.parametrize("budget", [None, 0, 4, 500])
def test_a_schema_holds_the_answer_and_a_budget_ends_the_thought(
    model: Models, kind: tuple[Any, ...], budget: int | None
) -> None:
    one = model(*kind)
    thought = "考えている。" * 6
    opened = {"r1": "", "qwen3": "<think>", "harmony": "<|channel|>analysis<|message|>"}[kind[0]]
    closed = "<|end|>" if kind[0] == "harmony" else "</think>"
    # the answer that the model wants is none that the schema allows
    script = one.ids(opened) + one.ids(thought) + one.ids(closed) + one.ids("やあ")
    told = {} if budget is None else {"thinking_token_budget": budget}
    said = one.message(script, response_format=FORMAT, max_tokens=300, **told)
    assert json.loads(said["content"]) == {"答": "東京"}
    found = len(one.ids(said.get("reasoning_content", "")))
    if budget is None or budget == 500:
        assert said["reasoning_content"] == thought
    else:
        assert thought.startswith(said.get("reasoning_content", ""))
        # a character is not cut
        assert budget <= found <= budget + 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_needs_no_schema(model: Models, kind: tuple[Any, ...]) -> None:
    one = model(*kind)
    opened = "" if kind[0] == "r1" else "<think>"
    script = one.ids(opened) + one.ids("考えている。") * 20
    said = one.message(script, thinking_token_budget=5, max_tokens=60)
    assert 0 < len(said["reasoning_content"]) < 12
    assert said["content"].startswith("考え") or "考えている。" in said["content"]


def test_a_thought_can_not_end_the_turn_before_an_answer_that_has_a_schema(model: Models) -> None:
    one = model("r1", "bpe")
    script = [*one.ids("考え"), one.tokenizer.eos_token_id, *one.ids("</think>")]
    said = one.message(script, response_format=FORMAT, max_tokens=200, thinking_token_budget=9)
    assert json.loads(said["content"]) == {"答": "東京"}


HEAD = "<|start|>assistant"
CALL = '<|channel|>commentary to=functions.weather <|message|>{"town": "大阪"}'


@pytest.mark.parametrize(
    ("script", "thought", "answer"),
    [
        (f"<|channel|>analysis<|message|>考え<|end|>{HEAD}<|channel|>final<|message|>東京です。",
         "考え", "東京です。"),
        ("<|channel|>final<|message|>東京です。", "", "東京です。"),
        (f"<|channel|>analysis<|message|>一<|end|>{HEAD}<|channel|>analysis<|message|>二<|end|>"
         f"{HEAD}<|channel|>final<|message|>答え", "一\n二", "答え"),
        ("<|channel|>analysis<|message|>考え", "考え", ""),
        ("東京です。", "", "東京です。"),
    ],
)  # fmt: skip
def test_channels_are_told_apart(model: Models, script: str, thought: str, answer: str) -> None:
    said = model("harmony", "bpe").message(script)
    assert said.get("reasoning_content", "") == thought
    assert (said["content"] or "") == answer


def test_harmonys_calls_are_openais(model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    one = model("harmony", "bpe")
    monkeypatch.setattr(one.service, "_takes_tools", True)
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    script = f"<|channel|>analysis<|message|>調べる<|end|>{HEAD}{CALL}"
    said = one.message(script, tools=[tool])
    [call] = said["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"town": "大阪"}'}
    assert (said["content"], said["finish"]) == (None, "tool_calls")
    assert said["reasoning_content"] == "調べる"
    held = one.message(
        one.ids("<|channel|>") + one.ids("commentary") + one.ids("やあ"),
        tools=[tool], tool_choice="required", max_tokens=80, thinking_token_budget=3,
    )  # fmt: skip
    assert held["tool_calls"][0]["function"]["name"] == "weather"


def prompt(one: Model) -> str:
    return str(one.tokenizer.decode(one.engine.requests[-1].prompt))


def test_template_variables_reach_the_template(model: Models) -> None:
    one = model("qwen3", "bpe")
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert one.message("東京です。", **off)["content"] == "東京です。"
    assert prompt(one).endswith("<think>\n\n</think>\n\n")
    one.message("東京です。", reasoning_effort="none")
    assert prompt(one).endswith("<think>\n\n</think>\n\n")
    one.message("東京です。", reasoning_effort="medium")
    assert prompt(one).endswith("assistant\n")
    one = model("harmony", "bpe")
    one.message("<|channel|>final<|message|>はい", reasoning_effort="high")
    assert "high" in prompt(one)


@pytest.mark.parametrize(
    ("family", "change", "param"),
    [
        ("qwen3", {"chat_template_kwargs": {"enable_thinkin": False}}, "enable_thinkin"),
        ("qwen3", {"chat_template_kwargs": {"messages": []}}, "messages"),
        ("qwen3", {"reasoning_effort": "high"}, "reasoning_effort"),
        ("qwen3", {"function_call": {"name": "f"}}, "function_call"),
        ("qwen3", {"chat_template_kwargs": {"enable_thinking": "<|im_end|>"}}, "messages"),
        ("r1", {"reasoning_effort": "none"}, "reasoning_effort"),
        ("r1", {"chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking"),
        ("r1", {"thinking_token_budget": -1}, "thinking_token_budget"),
    ],
)
def test_what_a_template_does_not_read_is_refused_by_name(
    model: Models, family: str, change: dict[str, Any], param: str
) -> None:
    response = model(family, "bpe").send("", **change)
    assert response.status_code == 400
    assert response.json()["error"]["param"].endswith(param)


def test_a_thought_is_sent_back_to_a_template_that_reads_it(model: Models) -> None:
    one = model("qwen3", "bpe")
    turn = {"role": "assistant", "content": "東京です。", "reasoning_content": "首都を問われた。"}
    asked = {"messages": [*ASK["messages"], turn, {"role": "user", "content": "大阪は？"}]}
    one.message("はい", **asked)
    # Qwen's template leaves the thoughts of earlier turns out
    assert "東京です。" in prompt(one)
    assert "問われた" not in prompt(one)


def test_generate_tells_the_answer_alone(model: Models) -> None:
    one = model("r1", "bpe")

    one.engine.script = one.ids("考え</think>\n\n東京です。")
    told = one.post("/generate", {"instruction": "首都は？"}).json()
    assert (told["text"], told["reasoning_content"]) == ("東京です。", "考え")


def test_vllm_refuses_what_it_can_not_hold(model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedEngine, "holds_thoughts", False)
    one = model("r1", "bpe")
    for change in ({"thinking_token_budget": 5}, {"response_format": FORMAT}):
        assert one.send("", **change).status_code == 400
