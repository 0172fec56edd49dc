"""The page for everyone: what axe-core finds, the keyboard, narrow windows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import page_visitor as tab
from tests.helpers.page_visitor import PHONE, Visit, Visitor

pytestmark = tab.marks

sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")

RICH = """## 見出し

**重要：**`code` と[リンク](https://example.com)

```python
print("とても長い行です。とても長い行です。とても長い行です。とても長い行です。とても長い行です。")
```

| 名前 | とても長い見出しのある列 | とても長い見出しのある列 | とても長い見出しのある列 |
|--|--|--|--|
| あ | https://example.com/a/very/long/address/without/any/blanks/in/it | う | え |

1. 一
   - 二
"""
WINDOWS: dict[str, dict[str, Any]] = {
    "wide, light": {"viewport": {"width": 1440, "height": 900}},
    "middle, dark, English": {
        "viewport": {"width": 1024, "height": 700},
        "color_scheme": "dark",
        "locale": "en-US",
    },
    "phone, light": PHONE,
    "phone, dark, English": PHONE | {"color_scheme": "dark", "locale": "en-US"},
}


def flawless(visitor: Visitor) -> None:
    """axe-core finds nothing, and nothing goes over the edge."""
    found = sync_playwright.Axe().run(visitor.page).response["violations"]
    told = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
    assert told == []
    assert visitor.fits()


@pytest.mark.parametrize("name", WINDOWS)
def test_every_state_of_the_page_is_accessible_and_fits(visit: Visit, name: str) -> None:
    # what is measured is the page, and axe-core is put into it as a script
    visitor = visit(bypass_csp=True, reduced_motion="reduce", **WINDOWS[name])
    visitor.expect("#key-dialog").to_be_visible()
    flawless(visitor)
    visitor.enter()
    flawless(visitor)
    visitor.answers(RICH, reasoning_content="考えている。")
    visitor.ask("書いてください。" * 10)
    visitor.answered()
    visitor[".thought summary"].click()
    flawless(visitor)
    visitor[".edit"].click()
    flawless(visitor)
    visitor[".cancel"].click()
    visitor["#compare"].click()
    visitor.ask("二つ目")
    visitor.answered()
    visitor[".turn:last-child .answer:last-child .again"].click()
    visitor.answers("違う回答")
    visitor.answered()
    flawless(visitor)
    token = {"token": "あ", "logprob": -0.1, "top_logprobs": [{"token": "い\n", "logprob": -3}]}
    probable = {"choices": [{"delta": {"content": "あ"}, "logprobs": {"content": [token] * 3}}]}
    visitor.streams(probable)
    visitor[".turn:last-child .answer:first-child .again"].click()
    visitor.answered()
    visitor[".turn:last-child .probabilities >> visible=true"].click()
    visitor[".token"].first.click()
    visitor[".turn:last-child .better button"].first.click()
    flawless(visitor)
    visitor.page.route("**/chat/completions", lambda route: route.abort())
    visitor.ask("三つ目")
    visitor.expect(".turn:last-child .problem strong").to_have_count(2)
    visitor.answered()
    flawless(visitor)
    for panel in ("history", "settings"):
        if visitor[f"#{panel}"].is_hidden():
            visitor[f"#open-{panel}"].click()
        for folded in visitor[f"#{panel} details"].all():
            folded.locator("summary").click()
        flawless(visitor)
        if panel == "history":
            visitor["#conversations .erase"].first.click()
            visitor.expect("#ask").to_be_visible()
            flawless(visitor)
            visitor["#ask-cancel"].click()
        visitor[f"#close-{panel}"].click()
        visitor.expect(f"#open-{panel}").to_be_focused()


def test_a_panel_of_a_phone_covers_the_conversation_for_the_keyboard_too(visit: Visit) -> None:
    visitor = visit(**PHONE).enter()
    for panel in ("history", "settings"):
        visitor[f"#open-{panel}"].click()
        visitor.expect(f"#open-{panel}").to_have_attribute("aria-expanded", "true")
        inside = f"() => document.getElementById('{panel}').contains(document.activeElement)"
        assert visitor.page.evaluate(inside)
        assert visitor.page.evaluate("() => document.getElementById('composer').inert")
        visitor.page.keyboard.press("Escape")
        visitor.expect(f"#{panel}").to_be_hidden()
        assert not visitor.page.evaluate("() => document.getElementById('composer').inert")


def test_panels_stay_as_the_user_left_them(visit: Visit) -> None:
    visitor = visit(viewport={"width": 1440, "height": 900}).enter()
    visitor["#close-history"].click()
    visitor["#open-settings"].click()
    visitor.expect("#settings").to_be_hidden()
    visitor.page.reload()
    visitor.expect("#model").to_be_enabled()
    visitor.expect("#history").to_be_hidden()
    visitor.expect("#settings").to_be_hidden()
    visitor["#open-history"].click()
    visitor.page.reload()
    visitor.expect("#history").to_be_visible()
