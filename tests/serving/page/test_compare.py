"""Two models beside each other, which is better, token probabilities, presets."""

from __future__ import annotations

import json
from math import exp
from typing import Any

from tests.helpers import page_visitor as tab
from tests.helpers.page_visitor import (
    CHAT,
    KEY,
    QUESTION,
    REPEATED,
    Visit,
    Visitor,
    events_of,
    text_of,
)

pytestmark = tab.marks

WIDE = {"viewport": {"width": 1440, "height": 900}}
BETTER = ".better button"


def compare(visitor: Visitor, answers: dict[str, str]) -> list[Any]:
    """Have each model give its answer; the bodies of the requests."""
    bodies: list[Any] = []

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        events = events_of(answers[bodies[-1]["model"]])
        route.fulfill(body=text_of(events), content_type="text/event-stream")

    visitor.page.unroute(CHAT)
    visitor.page.route(CHAT, answer)
    return bodies


def asked(visitor: Visitor, **body: Any) -> Any:
    """What the server answers to the same request without the page."""
    headers = {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}
    url = f"{visitor.address}/v1/chat/completions"
    answer = visitor.context.request.post(url, data=body, headers=headers).json()
    return answer["choices"][0]


def test_base_and_adapter_answer_beside_each_other(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor["#compare"].click()
    visitor.expect("#other").to_be_focused()
    visitor.expect("#other").to_have_value("大阪弁")
    visitor.ask(QUESTION, temperature="0", max_tokens="40")
    visitor.expect(".answer .name").to_have_text(["hina-4m", "大阪弁"])
    visitor.expect(".answer-text").to_have_count(2)
    visitor.answered()
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
    for column, model in enumerate(("hina-4m", "大阪弁")):
        text = asked(visitor, model=model, **body)["message"]["content"]
        visitor.expect(f".answer:nth-child({column + 1}) .answer-text").to_have_text(text)
    boxes = [box.bounding_box() for box in visitor[".answer"].all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert visitor.errors == []


def test_candidates_stay_within_their_column(visit: Visit) -> None:
    visitor = visit(viewport={"width": 1024, "height": 700}, locale="en-US").enter()
    visitor["#compare"].click()
    token = {
        "token": "桜",
        "logprob": -0.1,
        "top_logprobs": [{"token": "花見の季節", "logprob": -3}],
    }
    visitor.streams({"choices": [{"delta": {"content": "桜"}, "logprobs": {"content": [token]}}]})
    visitor.ask("花")
    visitor.answered()
    visitor[".probabilities >> visible=true"].first.click()
    visitor[".token"].first.click()
    visitor.expect(".candidates meter").to_have_count(2)
    column = visitor[".answer"].first.bounding_box()
    table = visitor[".candidates table"].bounding_box()
    assert table["x"] + table["width"] < column["x"] + column["width"]
    assert all(bar.bounding_box()["width"] > 20 for bar in visitor[".candidates meter"].all())


def test_stop_ends_both_answers(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor["#compare"].click()
    visitor["#other"].select_option("hina-4m")
    endless = {"temperature": "0", "max_tokens": "900", "frequency_penalty": "-2"}
    visitor.ask(QUESTION + "雨" * 300 + "a" * 300, **endless)
    for column in (1, 2):
        visitor.expect(f".answer:nth-child({column}) .figures").to_contain_text("約")
    visitor["#stop"].click()
    for column in (1, 2):
        visitor.expect(f".answer:nth-child({column}) .figures").to_contain_text("停止しました")


def test_the_better_answer_is_a_row_of_preferences(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor.expect("#download-preferences").to_be_disabled()
    visitor["#system"].fill("短く。")
    visitor["#compare"].click()
    compare(visitor, {"hina-4m": "雨です。", "大阪弁": "<think>方言で。</think>雨やで。"})
    visitor.ask("天気は？")
    visitor.answered()
    visitor[BETTER].last.click()
    visitor.expect(BETTER).to_have_count(2)
    visitor.expect(".answer.chosen .name").to_have_text("大阪弁")
    visitor.expect("#rated").to_have_text("比較の評価: 1 件")
    # the next turn goes on from the better one, for both
    bodies = compare(visitor, {"hina-4m": "晴れです。", "大阪弁": "晴れやで。"})
    visitor.ask("明日は？")
    visitor.answered()
    assert [body["messages"][2]["content"] for body in bodies] == ["雨やで。"] * 2
    visitor.expect(".goes-on:visible").to_have_count(1)
    visitor[BETTER].nth(2).click()
    visitor.expect("#rated").to_have_text("比較の評価: 2 件")
    visitor.page.reload()
    visitor.expect(".answer.chosen").to_have_count(2)
    rows = [json.loads(line) for line in visitor.downloaded("#download-preferences").splitlines()]
    system = {"role": "system", "content": "短く。"}
    assert rows == [
        {
            "prompt": [system, {"role": "user", "content": "天気は？"}],
            "chosen": [
                {"role": "assistant", "content": "雨やで。", "reasoning_content": "方言で。"}
            ],
            "rejected": [{"role": "assistant", "content": "雨です。"}],
            "chosen_model": "大阪弁",
            "rejected_model": "hina-4m",
        },
        {
            "prompt": [
                system,
                {"role": "user", "content": "天気は？"},
                {"role": "assistant", "content": "雨やで。"},
                {"role": "user", "content": "明日は？"},
            ],
            "chosen": [{"role": "assistant", "content": "晴れです。"}],
            "rejected": [{"role": "assistant", "content": "晴れやで。"}],
            "chosen_model": "hina-4m",
            "rejected_model": "大阪弁",
        },
    ]
    visitor[BETTER].nth(2).click()
    visitor.expect("#rated").to_have_text("比較の評価: 1 件")
    assert visitor.errors == []


def test_only_two_whole_answers_to_the_same_can_be_compared(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor["#compare"].click()
    compare(visitor, {"hina-4m": "雨です。", "大阪弁": "雨です。"})
    visitor.ask("天気は？")
    visitor.answered()
    # the same text twice
    visitor.expect(".better").to_be_hidden()
    compare(visitor, {"大阪弁": "雨やで。"})
    visitor[".answer:last-child .again"].click()
    visitor.expect(".better").to_be_visible()
    # another system prompt
    visitor["#system"].fill("長く。")
    compare(visitor, {"大阪弁": "雨ですねん。"})
    visitor[".answer:last-child .again"].click()
    visitor.expect(".answer:last-child .page").to_have_text("3/3")
    visitor.answered()
    visitor.expect(".better").to_be_hidden()
    visitor[".answer:last-child .before"].click()
    visitor.expect(".better").to_be_visible()
    # one that failed
    visitor.page.unroute(CHAT)
    visitor.page.route(CHAT, lambda route: route.abort())
    visitor[".answer:first-child .again"].click()
    visitor.expect(".answer:first-child .problem").to_contain_text("接続できません")
    visitor.expect(".better").to_be_hidden()


def test_a_deleted_conversation_takes_its_ratings_with_it_and_says_so(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor["#compare"].click()
    compare(visitor, {"hina-4m": "雨です。", "大阪弁": "雨やで。"})
    visitor.ask("天気は？")
    visitor.answered()
    visitor[BETTER].first.click()
    visitor.expect("#rated").to_contain_text("1 件")
    visitor["#conversations .erase"].click()
    visitor.expect("#ask-more").to_contain_text("1 件の評価も削除されます")
    visitor["#ask-act"].click()
    visitor.expect("#download-preferences").to_be_disabled()


def test_the_probabilities_of_the_tokens_are_those_of_the_server(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor.ask(QUESTION, temperature="0")
    visitor.expect(".answer-text").to_have_text(REPEATED)
    visitor.answered()
    visitor.expect(".answer .probabilities").to_be_hidden()
    visitor["#logprobs"].check()
    visitor["#new"].click()
    with visitor.page.expect_request(CHAT) as caught:
        visitor.ask(QUESTION)
        visitor.answered()
    body = caught.value.post_data_json
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    del body["stream"], body["stream_options"]
    told = asked(visitor, **body)["logprobs"]["content"]
    last = ".turn:last-child"
    visitor[f"{last} .probabilities"].click()
    shown = visitor[f"{last} .token"].all_inner_texts()
    assert len(shown) == len(told) > 3
    assert "".join(shown).replace("⏎", "") == REPEATED
    visitor[f"{last} .token"].first.click()
    rows = [row.split("\t") for row in visitor[f"{last} .candidates tbody tr"].all_inner_texts()]
    expected = [f"{exp(each['logprob']) * 100:.1f}" for each in told[0]["top_logprobs"]]
    assert [f"{float(row[1].rstrip('%')):.1f}" for row in rows] == expected
    visitor.page.keyboard.press("ArrowRight")
    visitor.expect(f"{last} .token:nth-of-type(2)").to_be_focused()
    visitor.expect(f"{last} .token:nth-of-type(2)").to_have_attribute("aria-pressed", "true")
    visitor[f"{last} .probabilities"].click()
    visitor.expect(f"{last} .answer-text").to_have_text(REPEATED)
    assert visitor.errors == []


def test_presets_fill_the_settings_and_a_user_has_their_own(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor.expect("#preset").to_have_value("preset_standard")
    visitor["#preset"].select_option("preset_exact")
    visitor.expect("#temperature").to_have_value("0")
    visitor.expect("#top_p").to_have_value("")
    visitor["#preset"].select_option("preset_thinking")
    visitor.expect("#max_tokens").to_have_value("")
    visitor["#temperature"].fill("0.33")
    visitor.expect("#preset").to_have_value("")
    visitor["#save-preset"].click()
    visitor.expect("#ask-field").to_be_focused()
    visitor["#ask-field"].fill("__proto__")
    visitor["#ask-field"].press("Enter")
    visitor.expect("#preset").to_have_value("=__proto__")
    visitor["[type=reset]"].click()
    visitor.expect("#temperature").to_have_value("0.7")
    visitor.page.reload()
    visitor.expect("#preset").to_have_value("preset_standard")
    visitor["#preset"].select_option("=__proto__")
    visitor.expect("#temperature").to_have_value("0.33")
    bodies = visitor.answers("はい。")
    visitor.ask("天気は？")
    visitor.answered()
    sampling = {
        name: bodies[0].get(name) for name in ("temperature", "top_p", "top_k", "max_tokens")
    }
    assert sampling == {"temperature": 0.33, "top_p": 0.95, "top_k": 20, "max_tokens": None}
    visitor["#delete-preset"].click()
    visitor.expect("#preset").to_have_value("")
    visitor.page.reload()
    visitor.expect("#preset option[value^='=']").to_have_count(0)
    assert visitor.errors == []
