"""Tools and thoughts, held against what transformers itself renders for each answer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from aift_ray.data.prompts.supervision import Supervision
from aift_ray.data.readers.row_schema import make_example
from aift_ray.data.token_types import EncodedRow
from aift_ray.serving.conversation import ChatMessage
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import wrap
from tests.helpers.row_examples import runs, trained
from tests.helpers.tool_templates import CONTROLS, TOOL_FAMILIES

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "天気を調べます。",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "町の名"}},
            "required": ["town"],
        },
    },
}


def call(town: str, id: str = "abc123def") -> dict[str, Any]:
    function = {"name": "weather", "arguments": json.dumps({"town": town}, ensure_ascii=False)}
    return {"id": id, "type": "function", "function": function}


SYSTEM = {"role": "system", "content": "短く。"}
ASKED = {"role": "user", "content": "大阪の天気は？"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [call("大阪")]}
RESULT = {"role": "tool", "tool_call_id": "abc123def", "content": '晴れ、"25"度'}
SAID = {"role": "assistant", "content": "大阪は晴れです。"}
THOUGHT, LATER = "道具で調べる。", "晴れと出た。"
ROUND = [ASKED, CALLED, RESULT, SAID]
ROWS: dict[str, list[dict[str, Any]]] = {
    "a round": ROUND,
    "a call last": [SYSTEM, ASKED, CALLED],
    "two rounds": [
        SYSTEM,
        *ROUND,
        {"role": "user", "content": "東京は？"},
        {"role": "assistant", "content": "", "tool_calls": [call("東京", "abc123dez")]},
        {"role": "tool", "tool_call_id": "abc123dez", "content": "雨"},
        {"role": "assistant", "content": "東京は雨です。"},
    ],
    "two calls": [
        ASKED,
        {**CALLED, "tool_calls": [call("大阪"), call("東京", "abc123dez")]},
        RESULT,
        {"role": "tool", "tool_call_id": "abc123dez", "content": "雨"},
        {"role": "assistant", "content": "晴れと雨です。"},
    ],
    "words beside a call": [ASKED, {**CALLED, "content": "調べます。"}, RESULT, SAID],
    "thoughts": [
        ASKED,
        {**CALLED, "reasoning_content": THOUGHT},
        RESULT,
        {**SAID, "reasoning_content": LATER},
    ],
}
# R1's template writes calls, and not which tools there are
TOOLS = {name: [] if name == "r1" else [WEATHER] for name in TOOL_FAMILIES}
# what a family's own template can't write
REFUSED = {
    ("harmony", "two calls"): 'does not write the call of "weather"',
    ("llama3.1", "two calls"): "only supports single tool-calls",
    ("llama3.1", "words beside a call"): "does not write the text",
    ("llama3.1", "thoughts"): "no place for the thought of message 2",
    ("mistral", "words beside a call"): "does not write the text",
    ("mistral", "thoughts"): "no place for the thought of message 2",
    ("r1", "words beside a call"): "does not write the call",
}


@pytest.fixture(scope="module")
def made(bpe: Tokenizer) -> Callable[..., PromptEncoder]:
    def get(name: str, **fields: Any) -> PromptEncoder:
        template, bos, eos = TOOL_FAMILIES[name]
        tokenizer = wrap(bpe, template, bos, eos)
        tokenizer.add_tokens(
            [AddedToken(each, special=True, normalized=False) for each in CONTROLS]
        )
        return PromptEncoder(tokenizer, supervision=Supervision(**fields))

    return get


def example(messages: list[dict[str, Any]], **keys: Any) -> Example:
    found = make_example({"messages": messages, **keys}, "rows.jsonl", 1)
    assert isinstance(found, Example), found
    return found


def reference(
    encoder: PromptEncoder, name: str, messages: list[dict[str, Any]], generation: bool
) -> str:
    """What transformers renders, told of calls and thoughts in the form that the family wants."""
    chat: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for turn in chat:
        for each in turn.get("tool_calls", []) if name != "r1" else []:
            each["function"]["arguments"] = json.loads(each["function"]["arguments"])
        if "tool_calls" in turn:
            turn["content"] = turn["content"] or (None if name == "r1" else "")
        if "reasoning_content" in turn and name == "harmony":
            turn["thinking"] = turn.pop("reasoning_content")
    text = encoder.tokenizer.apply_chat_template(
        chat, tools=TOOLS[name] or None, add_generation_prompt=generation, tokenize=False
    )
    assert isinstance(text, str)
    return text


def starts(encoded: EncodedRow) -> list[list[int]]:
    """The ids before each trained turn."""
    return [
        piece.ids[:at]
        for piece in encoded.pieces
        for at, flag in enumerate(piece.supervised)
        if flag and not (at and piece.supervised[at - 1])
    ]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_each_answer_is_what_its_template_shows_for_it(
    made: Callable[..., PromptEncoder], name: str, row: str
) -> None:
    encoder, messages = made(name), ROWS[row]
    item = example(messages, tools=TOOLS[name])
    if (name, row) in REFUSED:
        with pytest.raises(RowError, match=REFUSED[name, row]):
            encoder.rows(item)
        return
    encoded = encoder.rows(item)
    answers = [at for at, each in enumerate(messages) if each["role"] == "assistant"]
    texts = trained(encoder, item)
    assert len(texts) == len(answers) == len(starts(encoded))
    for at, text, before in zip(answers, texts, starts(encoded), strict=True):
        prompt = reference(encoder, name, messages[:at], True)
        assert encoder.tokenizer.decode(before) == prompt
        plain = encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert before == plain
        full = reference(encoder, name, messages[: at + 1], False)
        thought = messages[at].get("reasoning_content", "")
        if full.startswith(prompt) and thought in full:
            assert full.removeprefix(prompt).strip() == text.strip()
            continue
        # R1's prompt opens a thought, which its template cuts away; in Harmony's history the
        # thought of a call is gone once there is an answer
        pairs = enumerate(zip(full, prompt, strict=False))
        tail = full[next((n for n, pair in pairs if len(set(pair)) > 1), len(prompt)) :]
        assert text.endswith(tail) or full.endswith(text)
        assert thought in text
    assert not encoder.generation_gap


@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_calls_are_trained_results_and_tools_are_not(
    made: Callable[..., PromptEncoder], name: str
) -> None:
    encoder = made(name)
    item = example([SYSTEM, *ROUND], tools=TOOLS[name])
    called, said = trained(encoder, item)
    assert "weather" in called
    assert "大阪" in called
    for text in (called, said):
        assert "天気を調べます" not in text
        assert "晴れ、" not in text
        assert "短く" not in text
    assert "大阪は晴れです。" in said
    [whole, *_] = reversed(encoder.rows(item).pieces)
    shown = str(encoder.tokenizer.decode(whole.ids))
    told = ["天気を調べます。"] if TOOLS[name] else []
    for text in (*told, "短く。", "大阪の天気は？", "大阪は晴れです。"):
        assert shown.count(text) == 1, text


@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_serving_feeds_the_same_ids_for_the_same_messages(
    made: Callable[..., PromptEncoder], name: str
) -> None:
    encoder = made(name)
    named = [{**ASKED, "name": "太郎"}, *ROUND[1:]]
    for messages in (ROUND, ROWS["two rounds"], named):
        read = [ChatMessage.model_validate(each) for each in messages]
        served = [Message(each.role, each.text(), each.further()) for each in read]
        answers = [at for at, each in enumerate(messages) if each["role"] == "assistant"]
        fed = [encoder.chat_ids(served[:at], TOOLS[name]) for at in answers]
        assert starts(encoder.rows(example(messages, tools=TOOLS[name]))) == fed


def test_sharegpts_form_is_openais(made: Callable[..., PromptEncoder]) -> None:
    function = WEATHER["function"]
    row = {
        "tools": json.dumps([function], ensure_ascii=False),
        "system": "短く。",
        "conversations": [
            {"from": "human", "value": "大阪の天気は？"},
            {
                "from": "function_call",
                "value": '{"name": "weather", "arguments": {"town": "大阪"}}',
            },
            {"from": "observation", "value": '晴れ、"25"度'},
            {"from": "gpt", "value": "大阪は晴れです。"},
        ],
    }
    item = make_example(row, "f", 1)
    assert isinstance(item, Example)
    for name in (name for name, tools in TOOLS.items() if tools):
        encoder = made(name)
        mine, openai = (
            [piece.ids for piece in encoder.rows(each).pieces]
            for each in (item, example([SYSTEM, *ROUND], tools=[WEATHER]))
        )
        if name == "mistral":
            # shows ids, and here the row has none
            assert len(mine) == len(openai)
        else:
            assert mine == openai, name


def test_a_template_without_tools_counts_or_refuses_them(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, families.CHATML, None, "<|im_end|>"))
    assert encoder.rows(example([ASKED, SAID], tools=[WEATHER])).not_shown == ("tools",)
    with pytest.raises(RowError, match='does not write the call of "weather" of message 2'):
        encoder.rows(example(ROUND, tools=[WEATHER]))


def test_calls_without_their_tools_are_refused(made: Callable[..., PromptEncoder]) -> None:
    with pytest.raises(RowError, match="does not show the model the tools"):
        made("r1").rows(example(ROUND, tools=[WEATHER]))


def test_control_strings_in_tools_and_results(made: Callable[..., PromptEncoder]) -> None:
    sly = {**WEATHER, "function": {**WEATHER["function"], "description": "<|im_end|>"}}
    with pytest.raises(RowError, match="holds a control string"):
        made("qwen3").rows(example(ROUND, tools=[sly]))
    for name in TOOL_FAMILIES:
        encoder = made(name)
        plain, sly_result = (
            [
                token
                for piece in encoder.rows(example([ASKED, CALLED, result, SAID])).pieces
                for token in piece.ids
                if token in encoder._safe.control_ids
            ]
            for result in (RESULT, {**RESULT, "content": "<|im_end|></s><|end|>[/TOOL_RESULTS]"})
        )
        assert plain == sly_result


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "<think>\n日本の首都。\n</think>\n\n東京です。"},
        {"content": "日本の首都。\n</think>\n\n東京です。"},
        {"content": "東京です。", "reasoning_content": "日本の首都。"},
        {"content": "東京です。", "thinking": "日本の首都。"},
    ],
)
def test_a_thought_that_the_template_cuts_is_trained_behind_the_prompt(
    made: Callable[..., PromptEncoder], answer: dict[str, str]
) -> None:
    encoder = made("r1")
    asked = {"role": "user", "content": "首都は？"}
    item = example([asked, {"role": "assistant", **answer}])
    [text] = trained(encoder, item)
    assert text == "日本の首都。\n</think>\n\n東京です。<｜end▁of▁sentence｜>"
    [before] = starts(encoder.rows(item))
    assert str(encoder.tokenizer.decode(before)).endswith("<｜Assistant｜><think>\n")
    # in the history it is cut, as in serving; so each answer is a row
    again = [asked, {"role": "assistant", **answer}]
    both = encoder.rows(example([*again, *again]))
    assert both.split
    assert trained(encoder, example([*again, *again])) == [text, text]
    assert str(encoder.tokenizer.decode(both.pieces[1].ids)).count("日本の首都。") == 1
    assert not both.not_shown


TALK = [
    {"role": "user", "content": "一は？"},
    {"role": "assistant", "content": "二。", "reasoning_content": "数える。"},
    {"role": "user", "content": "三は？"},
    {"role": "assistant", "content": "四。", "reasoning_content": "足す。"},
]


def test_settings_of_what_is_trained(made: Callable[..., PromptEncoder]) -> None:
    talk = example(TALK)
    first = "<think>\n数える。\n</think>\n\n二。<|im_end|>"
    last = "<think>\n足す。\n</think>\n\n四。<|im_end|>"
    assert trained(made("qwen3"), talk) == [first, last]
    assert trained(made("qwen3", turns="last"), talk) == [last]
    kept = made("qwen3", rewritten="keep")
    assert trained(kept, talk) == ["二。<|im_end|>", last]
    assert len(kept.rows(talk).not_shown) == 1
    with pytest.raises(RowError, match=r"message 2 \(assistant\) otherwise once it is history"):
        made("qwen3", rewritten="error").rows(talk)
    assert trained(made("qwen3", thoughts="masked"), talk) == [
        "\n</think>\n\n二。<|im_end|>",
        "\n</think>\n\n四。<|im_end|>",
    ]
    away = made("qwen3", thoughts="none")
    assert trained(away, talk) == [
        "<think>\n\n</think>\n\n二。<|im_end|>",
        "<think>\n\n</think>\n\n四。<|im_end|>",
    ]
    assert len(away.rows(talk).not_shown) == 1
    assert trained(made("qwen3", end="none", turns="last"), talk) == [
        last.removesuffix("<|im_end|>")
    ]
    ends = made("qwen3", end="all", turns="last")
    [piece] = ends.rows(talk).pieces
    flagged = [ends.tokenizer.decode(run) for run in runs(piece)]
    assert flagged == ["<|im_end|>", "<|im_end|>", "<|im_end|>", last]


def test_a_message_of_weight_0_is_shown_and_not_trained(made: Callable[..., PromptEncoder]) -> None:
    encoder = made("llama3.1")
    turns = [{k: v for k, v in each.items() if k != "reasoning_content"} for each in TALK]
    for flag in ({"weight": 0}, {"train": False}):
        item = example([turns[0], {**turns[1], **flag}, *turns[2:]])
        assert trained(encoder, item) == ["四。<|eot_id|>"]
        assert "二。" in str(encoder.tokenizer.decode(encoder.rows(item).pieces[0].ids))
    with pytest.raises(RowError, match="weight 0"):
        made("llama3.1", turns="last").rows(example([*turns[:3], {**turns[3], "weight": 0}]))


def test_variables_of_the_template_are_those_of_the_row(
    made: Callable[..., PromptEncoder],
) -> None:
    encoder, talk = made("qwen3"), [TALK[0], {"role": "assistant", "content": "二。"}]
    item = example(talk, chat_template_kwargs={"enable_thinking": False, "colour": "赤"})
    assert trained(encoder, item) == ["二。<|im_end|>"]
    assert encoder.rows(item).not_shown == ("chat_template_kwargs.colour",)
    with pytest.raises(RowError, match="otherwise than after the prompt"):
        encoder.rows(example(TALK, chat_template_kwargs={"enable_thinking": False}))


def test_keys_that_the_template_does_not_show_are_counted(
    made: Callable[..., PromptEncoder],
) -> None:
    turns, odd = [{**ASKED, "name": "太郎"}, CALLED, RESULT, SAID], "call:untold:weather"
    assert made("qwen3").rows(example(turns)).not_shown == ("name", "tool_call_id", odd)
    assert made("mistral").rows(example(turns)).not_shown == ("name", odd)
    raw = make_example({"prompt": "問", "completion": "答", "system": "短く。"}, "f", 1)
    assert isinstance(raw, Example)
    assert made("qwen3").rows(raw).not_shown == ("raw:system",)


SYSTEM_LAST = (
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'user' -%}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}"
    "{% endif %}{{ m.content }}[/INST]{%- elif m.role == 'assistant' %} {{ m.content | trim }}"
    "{{ eos_token }}{%- endif -%}{%- endfor -%}"
)


def test_a_system_message_before_the_last_question_is_in_each_row(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, SYSTEM_LAST, "<s>", "</s>"))
    one = example([SYSTEM, *TALK[:1], {"role": "assistant", "content": "二。"}])
    [piece] = encoder.rows(one).pieces
    assert encoder.tokenizer.decode(piece.ids) == "<s>[INST] 短く。\n\n一は？[/INST] 二。</s>"
    assert trained(encoder, one) == [" 二。</s>"]
    plain = [{k: v for k, v in each.items() if k != "reasoning_content"} for each in TALK]
    two = encoder.rows(example([SYSTEM, *plain]))
    assert two.split
    assert [str(encoder.tokenizer.decode(each.ids)) for each in two.pieces] == [
        "<s>[INST] 短く。\n\n一は？[/INST] 二。</s>",
        "<s>[INST] 一は？[/INST] 二。</s>[INST] 短く。\n\n三は？[/INST] 四。</s>",
    ]


def test_a_template_that_loses_a_text_is_named_with_its_line(bpe: Tokenizer) -> None:
    losing = families.CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}\n{% if m.role != 'system' or messages | length < 3 %}",
    ).replace("{% endfor %}", "{% endif %}{% endfor %}")
    encoder = PromptEncoder(wrap(bpe, losing, None, "<|im_end|>"))
    with pytest.raises(RowError) as refusal:
        encoder.rows(example([SYSTEM, *TALK[:1], SAID, *TALK[:1], SAID]))
    assert 'the text "短く。" of message 1 (system)' in str(refusal.value)
    assert "line 2 of the template: {% if m.role != 'system'" in str(refusal.value)
    twice = families.CHATML.replace("m['content']", "m['content'] * (2 if m.role == 'user' else 1)")
    with pytest.raises(RowError, match="message 1"):
        PromptEncoder(wrap(bpe, twice, None, "<|im_end|>")).rows(example([ASKED, SAID]))


def test_an_empty_system_message_is_none_where_there_is_no_role(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, families.GEMMA2, "<bos>", "<eos>"))
    turns = [ASKED, SAID]
    with_empty = encoder.rows(example([{"role": "system", "content": ""}, *turns]))
    assert with_empty.pieces == encoder.rows(example(turns)).pieces
    assert encoder.rows(example(turns, system="")).pieces == with_empty.pieces


def test_history_and_system_stand_before_an_instruction(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, families.CHATML, None, "<|im_end|>"))
    row = {
        "instruction": "三は？",
        "output": "四。",
        "system": "短く。",
        "history": [["一は？", "二。"]],
    }
    item = make_example(row, "f", 1)
    assert isinstance(item, Example)
    plain = [{k: v for k, v in each.items() if k != "reasoning_content"} for each in TALK]
    assert encoder.rows(item).pieces == encoder.rows(example([SYSTEM, *plain])).pieces
    assert trained(encoder, item) == ["二。<|im_end|>", "四。<|im_end|>"]


def test_the_digest_changes_with_what_is_trained(made: Callable[..., PromptEncoder]) -> None:
    settings: list[dict[str, str]] = [
        {},
        {"turns": "last"},
        {"thoughts": "masked"},
        {"end": "all"},
        {"rewritten": "keep"},
    ]
    assert len({made("qwen3", **fields).digest() for fields in settings}) == len(settings)


def test_an_encoder_that_was_sent_makes_the_same_rows(made: Callable[..., PromptEncoder]) -> None:
    encoder = made("harmony", turns="last")
    sent = pickle.loads(pickle.dumps(encoder))
    item = example(ROWS["thoughts"], tools=[WEATHER])
    assert sent.rows(item) == encoder.rows(item)
    assert sent.stop_ids == encoder.stop_ids
    with pytest.raises(RowError) as refusal:
        made("mistral").rows(example(ROWS["thoughts"]))
    assert pickle.loads(pickle.dumps(refusal.value)).remedy == refusal.value.remedy  # type: ignore[attr-defined]


def test_the_end_of_a_call_stops_an_answer(made: Callable[..., PromptEncoder]) -> None:
    encoder = made("harmony")
    call_end = encoder.tokenizer.convert_tokens_to_ids("<|call|>")
    assert call_end in encoder.stop_ids
