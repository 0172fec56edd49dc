"""The web page in a browser, on `aift-ray serve` with the shipped model: a conversation."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest

from tests.helpers import page_visitor as tab
from tests.helpers.page_visitor import (
    CHAT,
    ELSEWHERE,
    KEY,
    PHONE,
    QUESTION,
    REPEATED,
    Visit,
    Visitor,
)

pytestmark = tab.marks

# the shipped model goes on and on about LONG, ever surer of what it has said
ENDLESS = {"temperature": "0", "max_tokens": "900", "frequency_penalty": "-2"}
LONG = QUESTION + "雨" * 300 + "a" * 300


def test_a_conversation_streams_tells_its_speed_and_makes_no_console_error(
    visit: Visit,
) -> None:
    visitor = visit()
    visitor.expect("#key-dialog").to_be_visible()
    visitor.enter()
    assert visitor["#model option"].all_inner_texts() == ["hina-4m", "大阪弁", "b"]
    visitor.ask(QUESTION, temperature="0")
    visitor.expect(".answer-text").to_have_text(REPEATED)
    visitor.expect(".figures").to_have_text(
        re.compile(r"^\d+ トークン · [\d.–]+ トークン/\u2060秒")
    )
    visitor.expect("#spoken").to_have_text(REPEATED)
    visitor["#model"].select_option("大阪弁")
    visitor.ask("もう一つ。", max_tokens="8")
    visitor.expect(".turn:nth-child(2) .name").to_have_text("大阪弁")
    visitor.expect(".turn:nth-child(2) .figures").to_contain_text("最大トークン数")
    assert visitor.page.evaluate("() => sessionStorage.getItem('key')") == KEY
    assert visitor.errors == []


def test_the_request_holds_the_system_prompt_the_settings_and_the_conversation(
    visit: Visit,
) -> None:
    visitor = visit().enter()
    visitor["#system"].fill("短く答えます。")
    visitor.ask(QUESTION, temperature="0", seed="7", top_k="", max_tokens="3")
    visitor.expect("#send").to_be_visible()
    first = visitor[".answer-text"].inner_text()
    with visitor.page.expect_request(CHAT) as caught:
        visitor.ask("二つ目")
    body = caught.value.post_data_json
    assert body["messages"] == [
        {"role": "system", "content": "短く答えます。"},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "二つ目"},
    ]
    del body["messages"]
    assert body == {
        "model": "hina-4m", "temperature": 0, "top_p": 0.9, "max_tokens": 3, "seed": 7,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_an_answer_grows_can_be_stopped_and_made_anew(visit: Visit) -> None:
    visitor = visit().enter()
    visitor.ask(LONG, temperature="0", max_tokens="900")
    visitor.expect(".answer").to_have_attribute("aria-busy", "true")
    visitor.expect(".figures").to_contain_text("約")
    early = len(visitor[".answer-text"].inner_text())
    visitor["#language"].click()
    visitor.expect("#stop").to_have_text("Stop")
    visitor["#language"].click()
    visitor.expect(".answer-text").to_have_text(re.compile(f"[\\s\\S]{{{early + 30},}}"))
    visitor["#stop"].click()
    visitor.expect(".figures").to_contain_text("停止しました")
    stopped = visitor[".answer-text"].inner_text()
    assert len(stopped) > early
    visitor["#max_tokens"].fill("3")
    visitor[".again"].click()
    visitor.expect(".figures").not_to_contain_text("停止")
    visitor.expect(".answer-text").not_to_have_text(stopped)
    assert visitor[".turn"].count() == 1
    assert visitor.errors == []


def test_a_new_conversation_begins_in_the_midst_of_an_answer(
    visit: Visit,
) -> None:
    visitor = visit().enter()
    visitor.ask(LONG, **ENDLESS)
    visitor.expect(".figures").to_contain_text("約")
    visitor["#new"].click()
    visitor.expect(".turn").to_have_count(0)
    visitor.ask("つぎ", max_tokens="3")
    visitor.expect(".figures").to_be_visible()
    visitor.expect("#send").to_be_visible()
    assert visitor.errors == []


def test_the_language_is_the_browsers_until_it_is_switched(visit: Visit) -> None:
    visitor = visit(locale="en-US").enter()
    visitor.expect("#send").to_have_text("Send")
    visitor.ask(QUESTION, temperature="0")
    visitor.expect(".figures").to_contain_text("tokens/\u2060s")
    visitor["#language"].click()
    visitor.expect("#send").to_have_text("送信")
    visitor.expect(".figures").to_contain_text("トークン/\u2060秒")
    visitor.expect("html").to_have_attribute("lang", "ja")
    visitor.page.reload()
    visitor.expect("#send").to_have_text("送信")
    visitor.expect("#model").to_be_enabled()


def test_dark_follows_the_system_until_it_is_switched(visit: Visit) -> None:
    def is_dark(visitor: Visitor) -> bool:
        script = "() => getComputedStyle(document.body).backgroundColor"
        red, green, blue = re.findall(r"\d+", visitor.page.evaluate(script))[:3]
        return int(red) + int(green) + int(blue) < 200

    assert not is_dark(visit(color_scheme="light"))
    visitor = visit(color_scheme="dark").enter()
    assert is_dark(visitor)
    visitor.expect("#theme").to_have_attribute("aria-pressed", "true")
    visitor["#theme"].click()
    assert not is_dark(visitor)
    visitor.page.reload()
    assert not is_dark(visitor)


@pytest.mark.parametrize("host", ["127.0.0.1", ELSEWHERE])
def test_an_answer_is_copied_over_plain_http_too(visit: Visit, host: str) -> None:
    visitor = visit(host=host)
    secure = visitor.page.evaluate("() => isSecureContext && !!navigator.clipboard")
    assert secure == (host != ELSEWHERE)
    visitor.enter()
    visitor.ask(QUESTION, temperature="0")
    visitor.expect(".answer-text").to_have_text(REPEATED)
    visitor[".copy"].click()
    visitor.expect(".copy").to_have_text("コピーしました")
    visitor.expect(".copy").to_be_focused()
    visitor.expect("textarea.unseen").to_have_count(0)
    visitor["#message"].focus()
    visitor.page.keyboard.press("ControlOrMeta+V")
    visitor.expect("#message").to_have_value(REPEATED)
    assert visitor.errors == []


def test_the_keyboard_is_enough(visit: Visit) -> None:
    visitor = visit()
    press, write = visitor.page.keyboard.press, visitor.page.keyboard.insert_text
    write(KEY)
    press("Enter")
    visitor.expect("#message").to_be_focused()
    write("次の文をくり返してください。")
    press("Shift+Enter")
    write(REPEATED)
    press("Enter")
    visitor.expect(".question .text").to_have_text(QUESTION)
    visitor.expect(".again").to_be_visible()
    visitor.expect("#message").to_be_focused()
    for _ in range(10):
        press("Shift+Tab")
        if visitor[".again"].evaluate("element => element === document.activeElement"):
            break
    press("Enter")
    visitor.expect(".again").to_be_visible()
    visitor.expect("#message").to_be_focused()
    visitor["#settings summary"].focus()
    press("Enter")
    for name, value in ENDLESS.items():
        visitor[f"#{name}"].focus()
        press("ControlOrMeta+A")
        write(value)
    visitor["#message"].focus()
    write(LONG)
    press("Enter")
    visitor.expect(".turn:nth-child(2) .figures").to_contain_text("約")
    press("Escape")
    visitor.expect(".turn:nth-child(2) .figures").to_contain_text("停止しました")


def test_enter_that_ends_a_composition_does_not_send(visit: Visit) -> None:
    visitor = visit().enter()
    visitor["#message"].focus()
    session = visitor.context.new_cdp_session(visitor.page)
    place = {"selectionStart": 3, "selectionEnd": 3}
    session.send("Input.imeSetComposition", {"text": "きょう", **place})
    visitor.page.keyboard.press("Enter")
    session.send("Input.insertText", {"text": "今日"})
    # Safari's order: the composition is over, the key code is that of an input method
    visitor["#message"].dispatch_event("keydown", {"key": "Enter", "keyCode": 229})
    visitor.expect(".turn").to_have_count(0)
    visitor.expect("#message").to_have_value(re.compile("今日"))


def test_a_phone_shows_all_without_scrolling_sideways(visit: Visit) -> None:
    visitor = visit(**PHONE)
    assert visitor.fits()
    visitor.enter()
    visitor.expect("#settings").to_be_hidden()
    visitor["#open-settings"].click()
    visitor.expect("#close-settings").to_be_focused()
    assert visitor.fits()
    visitor["#temperature"].fill("0")
    visitor["#max_tokens"].fill("60")
    visitor["#close-settings"].click()
    visitor.ask(LONG)
    visitor.expect(".again").to_be_visible()
    assert visitor.fits()
    visitor["#language"].click()
    assert visitor.fits()
    assert visitor.errors == []


def test_a_wrong_key_is_told_and_another_can_be_given(visit: Visit) -> None:
    visitor = visit()
    visitor["#key"].fill("wrong")
    visitor["#key"].press("Enter")
    visitor.expect("#key-problem").to_have_text("API キーが正しくありません。")
    visitor.enter()
    visitor.expect("#key-dialog").to_be_hidden()


@pytest.mark.parametrize(
    ("status", "headers", "japanese", "english"),
    [
        (429, {"Retry-After": "3"}, "混み合っています。3 秒後に", "Try again in 3 s."),
        (503, {}, "準備ができていません", "not ready"),
        (504, {}, "時間切れ", "Out of time"),
        (404, {}, "このモデルはサーバーにありません", "does not have this model"),
        (502, {}, "HTTP 502", "HTTP 502"),
        (0, {}, "接続できません", "can’t be reached"),
    ],
)
def test_errors_are_told_in_both_languages_and_can_be_tried_again(
    visit: Visit,
    status: int,
    headers: dict[str, str],
    japanese: str,
    english: str,
) -> None:
    visitor = visit().enter()
    body = '{"error": {"message": "<b>why</b>", "type": "t", "param": null, "code": null}}'

    def answer(route: Any) -> None:
        if status:
            route.fulfill(status=status, headers=headers, body=body)
        else:
            route.abort()

    visitor.page.route(CHAT, answer)
    visitor.ask(QUESTION, temperature="0")
    visitor.expect(".answer .problem").to_contain_text(japanese)
    if status:
        visitor.expect(".answer .problem").to_contain_text("<b>why</b>")
    visitor["#language"].click()
    visitor.expect(".answer .problem").to_contain_text(english)
    visitor.page.unroute(CHAT)
    visitor[".again"].click()
    visitor.expect(".answer-text").to_have_text(REPEATED)
    visitor.expect(".answer .problem").to_be_hidden()


def _fulfill(body: str, route: Any) -> None:
    route.fulfill(body=body)


def test_a_stream_that_breaks_keeps_its_text_and_says_so(visit: Visit) -> None:
    visitor = visit().enter()
    chunk = '{"choices": [{"delta": {"content": "<i>半分"}, "finish_reason": null}]}'
    error = '{"error": {"message": "the answer took too long", "code": "timeout"}}'
    for ending, told in (("", "接続が切れました"), (f"data: {error}\n\n", "時間切れ")):
        stream = f"data: {chunk}\n\n{ending}"
        visitor.page.route(CHAT, partial(_fulfill, stream))
        visitor.ask(QUESTION)
        visitor.expect(".turn:last-child .problem").to_contain_text(told)
        visitor.expect(".turn:last-child .answer-text").to_have_text("<i>半分")
        visitor["#new"].click()


def test_a_wrong_setting_is_told_beside_it_and_nothing_is_sent(
    visit: Visit,
) -> None:
    visitor = visit().enter()
    visitor.ask(QUESTION, temperature="9")
    visitor.expect("#temperature").to_be_focused()
    visitor.expect("#temperature-problem").to_have_text("0〜2 の数を入れてください")
    visitor.expect("#message").to_have_value(QUESTION)
    visitor["[type=reset]"].click()
    visitor.expect("#temperature-problem").to_have_text("")
    visitor.expect("#temperature").to_have_value("0.7")


def test_only_the_page_is_open_to_everybody_and_it_forbids_all_but_its_own_files(
    visit: Visit, address: str
) -> None:
    request = visit().context.request
    answers = {path: request.get(address + path) for path in ("/", "/page/page.js", "/page/")}
    assert [answer.status for answer in answers.values()] == [200, 200, 401]
    policy = answers["/"].headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert request.get(f"{address}/page/%2e%2e/web.py").status == 401
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", answers["/"].text())
