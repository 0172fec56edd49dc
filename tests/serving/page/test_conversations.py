"""Conversations in the browser: kept, exported, deleted; questions and answers made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import page_visitor as tab
from tests.helpers.page_visitor import CHAT, KEY, QUESTION, REPEATED, Visit, Visitor

pytestmark = tab.marks

WIDE = {"viewport": {"width": 1440, "height": 900}}
ITEM = "#conversations .open"


def talk(visitor: Visitor, *pairs: tuple[str, str]) -> None:
    for question, answer in pairs:
        visitor.answers(answer)
        visitor.ask(question)
        visitor.answered()


def test_a_conversation_is_there_after_a_reload_and_can_be_opened_again(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    talk(visitor, ("天気は？", "雨です。"), ("明日は？", "晴れです。"))
    visitor["#new"].click()
    visitor.expect(".turn").to_have_count(0)
    talk(visitor, ("好きな\n色は？", "青です。"))
    visitor.page.reload()
    visitor.expect(".answer-text").to_have_text("青です。")
    assert visitor[f"{ITEM} span"].all_inner_texts() == ["好きな", "天気は？"]
    visitor.expect(f"{ITEM}[aria-current]").to_contain_text("好きな")
    visitor[ITEM].last.click()
    visitor.expect(".answer-text").to_have_text(["雨です。", "晴れです。"])
    visitor.expect("#model").to_be_enabled()
    bodies = visitor.answers("曇りです。")
    visitor.ask("明後日は？")
    visitor.answered()
    assert [message["content"] for message in bodies[0]["messages"]] == [
        "天気は？", "雨です。", "明日は？", "晴れです。", "明後日は？",
    ]  # fmt: skip
    assert visitor.errors == []


def test_what_was_answered_before_the_page_was_closed_is_kept(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor.ask(QUESTION, temperature="0")
    visitor.expect(".answer-text").to_have_text(REPEATED)
    visitor.answered()
    stored = visitor.page.evaluate("() => JSON.stringify({...localStorage})")
    assert KEY not in stored
    visitor.page.close()
    visitor.page = visitor.tab()
    visitor.enter()
    visitor.expect(ITEM).to_have_count(1)
    visitor[ITEM].click()
    visitor.expect(".answer-text").to_have_text(REPEATED)
    visitor.expect("#temperature").to_have_value("0")


def test_nothing_is_kept_when_the_user_does_not_want_it(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    visitor["#keep"].uncheck()
    visitor.expect("#welcome-more").to_contain_text("ページを閉じると消えます")
    talk(visitor, ("秘密です", "はい。"))
    visitor.expect(ITEM).to_have_count(1)
    visitor.page.reload()
    visitor.expect("#no-conversations").to_be_visible()
    visitor.expect(".turn").to_have_count(0)
    visitor.expect("#keep").not_to_be_checked()


def test_a_conversation_is_deleted_after_a_question_and_all_of_them(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    for question in ("一", "二", "三"):
        talk(visitor, (question, "はい。"))
        visitor["#new"].click()
    erase = visitor.page.get_by_role("button", name="「二」を削除")
    erase.click()
    visitor.expect("#ask-title").to_have_text("「二」を削除しますか？")
    visitor.expect("#ask-cancel").to_be_focused()
    visitor.page.keyboard.press("Escape")
    visitor.expect(ITEM).to_have_count(3)
    erase.click()
    visitor["#ask-act"].click()
    visitor.expect(f"{ITEM} span").to_have_text(["三", "一"])
    visitor[ITEM].first.click()
    visitor["#delete-all"].click()
    visitor.expect("#ask-title").to_contain_text("2 件")
    visitor["#ask-act"].click()
    visitor.expect(ITEM).to_have_count(0)
    visitor.expect(".turn").to_have_count(0)
    visitor.page.reload()
    visitor.expect("#no-conversations").to_be_visible()
    count = """() => new Promise((resolve) => {
      indexedDB.open("aift-ray").onsuccess = ({ target }) => {
        target.result.transaction("conversations").objectStore("conversations").count()
          .onsuccess = (event) => resolve(event.target.result);
      };
    })"""
    assert visitor.page.evaluate(count) == 0


def test_an_export_can_be_imported_elsewhere(visit: Visit, tmp_path: Path) -> None:
    visitor = visit(**WIDE).enter()
    talk(visitor, ("天気は？", "**雨**です。"))
    text = visitor.downloaded("#export")
    exported = json.loads(text)
    assert (exported["format"], exported["version"]) == ("aift-ray-conversations", 1)
    assert exported["conversations"][0]["next"][0]["question"] == "天気は？"
    file = tmp_path / "conversations.json"
    file.write_text(text, encoding="utf-8")
    other = visit(**WIDE).enter()
    other["#import-file"].set_input_files(file)
    other.expect("#imported").to_have_text("1 件の会話を読み込みました。")
    other[ITEM].click()
    other.expect(".answer-text strong").to_have_text("雨")
    assert other.errors == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "aift-ray-conversations", "version": 2, "conversations": []}',
        '{"format": "aift-ray-conversations", "version": 1, "conversations": [{}]}',
        '{"format": "aift-ray-conversations", "version": 1, "conversations": [{"id": "a",'
        ' "title": "t", "created": "", "updated": "", "shown": 0, "next": [{"question": {}}]}]}',
        '{"format": "aift-ray-conversations", "version": 1, "conversations": [{"id": "a",'
        ' "title": "t", "created": "", "updated": "", "shown": 0, "next": [{"question": "q",'
        ' "columns": [{"versions": [{"content": 1}], "shown": 0}], "continues": null,'
        ' "preferred": [], "next": [], "shown": 0}]}]}',
    ],
)
def test_another_file_is_refused_and_nothing_of_it_is_kept(
    visit: Visit, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "other.json"
    file.write_text(text, encoding="utf-8")
    visitor = visit(**WIDE).enter()
    visitor["#import-file"].set_input_files(file)
    visitor.expect("#imported").to_contain_text("エクスポートしたファイルではありません")
    visitor.expect(ITEM).to_have_count(0)
    assert visitor.errors == []


def test_an_edited_question_begins_a_branch_and_the_first_one_stays(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    talk(visitor, ("天気は？", "雨です。"), ("明日は？", "晴れです。"))
    bodies = visitor.answers("暑いです。")
    visitor[".turn:first-child .edit"].click()
    area = visitor[".edit-form textarea"]
    area.press("Escape")
    visitor.expect(".edit-form").to_have_count(0)
    visitor[".turn:first-child .edit"].click()
    visitor.expect(".edit-form textarea").to_have_value("天気は？")
    area.fill("気温は？")
    # Enter of a composition is none of ours
    area.dispatch_event("keydown", {"key": "Enter", "keyCode": 229})
    visitor.expect(".turn").to_have_count(2)
    area.press("Enter")
    visitor.expect(".answer-text").to_have_text(["暑いです。"])
    visitor.answered()
    assert bodies[0]["messages"] == [{"role": "user", "content": "気温は？"}]
    visitor.expect(".question .page").to_have_text("2/2")
    visitor[".question .before"].click()
    visitor.expect(".answer-text").to_have_text(["雨です。", "晴れです。"])
    visitor.page.reload()
    visitor.expect(".answer-text").to_have_text(["雨です。", "晴れです。"])
    visitor[".turn:first-child .question .after"].click()
    visitor.expect(".answer-text").to_have_text(["暑いです。"])
    assert visitor.errors == []


def test_an_answer_made_again_stands_beside_the_first_one(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    talk(visitor, ("天気は？", "雨です。"))
    visitor.answers("曇りです。")
    visitor[".again"].click()
    visitor.expect(".answer-text").to_have_text("曇りです。")
    visitor.expect(".answer .page").to_have_text("2/2")
    visitor[".answer .before"].click()
    visitor.expect(".answer-text").to_have_text("雨です。")
    bodies = visitor.answers("はい。")
    visitor.ask("傘は？")
    visitor.answered()
    assert bodies[0]["messages"][1]["content"] == "雨です。"
    # what the later turns were told stays what is shown
    visitor.expect(".turn:first-child .answer .pages").to_be_hidden()
    visitor.answers("雪です。")
    visitor[".turn:first-child .again"].click()
    visitor.expect(".answer-text").to_have_text(["雪です。"])
    visitor.expect(".question .page").to_have_text("2/2")
    assert visitor.errors == []


def test_two_tabs_show_the_same_conversations(visit: Visit) -> None:
    visitor = visit(**WIDE).enter()
    other = visitor.tab()
    other.keyboard.press("Escape")
    talk(visitor, ("天気は？", "雨です。"))
    from playwright.sync_api import expect

    expect(other.locator(ITEM)).to_have_count(1)
    other.locator(ITEM).click()
    expect(other.locator(".answer-text")).to_have_text("雨です。")
    talk(visitor, ("明日は？", "晴れです。"))
    expect(other.locator(".answer-text")).to_have_text(["雨です。", "晴れです。"])
    visitor["#delete-all"].click()
    visitor["#ask-act"].click()
    expect(other.locator(ITEM)).to_have_count(0)
    expect(other.locator(".turn")).to_have_count(0)


def test_without_a_database_a_conversation_lasts_as_long_as_the_page_and_that_is_said(
    visit: Visit,
) -> None:
    visitor = visit(**WIDE)
    visitor.context.add_init_script(
        "Object.defineProperty(window, 'indexedDB', {get() { throw new Error('forbidden'); }})"
    )
    visitor.page.reload()
    visitor.enter()
    talk(visitor, ("天気は？", "雨です。"))
    visitor.expect("#notice").to_contain_text("保存できません")
    visitor.expect(".answer-text").to_have_text("雨です。")
    visitor.expect(ITEM).to_have_count(1)
    with visitor.page.expect_request(CHAT):
        visitor.ask("明日は？")
    assert visitor.errors == []
