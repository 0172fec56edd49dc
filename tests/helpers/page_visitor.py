"""A visitor of the page: a browser's tab on a launched server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
marks = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.slow,
    pytest.mark.ray,
]

KEY = "aift-鍵"
QUESTION = "次の文をくり返してください。\n今日は朝から雨が降っている。"
REPEATED = "今日は朝から雨が降っている。"
CHAT = "**/v1/chat/completions"
# over plain HTTP only the loopback address is a secure context
ELSEWHERE = "page.test"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@contextmanager
def opened_file(path: Path) -> Iterator[Any]:
    """A file in a Japanese browser; `asked` of the page are the addresses of its requests."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(locale="ja-JP")
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()


class Visitor:
    """A tab of its own, which keeps what the console says and where requests go."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.context = browser.new_context(**({"locale": "ja-JP"} | options))
        self.errors: list[str] = []
        self.urls: list[str] = []
        self.context.on("request", lambda request: self.urls.append(request.url))
        self.page = self.tab()

    def tab(self) -> Any:
        """Another tab of the same browser."""
        page = self.context.new_page()
        page.set_default_timeout(8000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.address)
        return page

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def __getitem__(self, selector: str) -> Any:
        return self.page.locator(selector)

    def enter(self) -> Visitor:
        """Give the key."""
        self["#key"].fill(KEY)
        self["#key"].press("Enter")
        self.expect("#model").to_be_enabled()
        return self

    def expect(self, selector: str) -> Any:
        from playwright import sync_api

        return sync_api.expect(self[selector], message=selector)

    def ask(self, question: str, **settings: str) -> None:
        if "frequency_penalty" in settings:
            self["#settings details"].evaluate("element => { element.open = true; }")
        for name, value in settings.items():
            self[f"#{name}"].fill(value)
        self["#message"].fill(question)
        self["#send"].click()

    def answered(self) -> Visitor:
        """Wait until nothing is under way."""
        self.expect("#send").to_be_visible()
        return self

    def answers(self, *contents: str, ending: str = "stop", **delta: Any) -> list[Any]:
        """Have each request answered with a stream of these pieces; the bodies of the requests."""
        return self.streams(*events_of(*contents, ending=ending, **delta))

    def streams(self, *events: dict[str, Any]) -> list[Any]:
        """Have each request answered with these events; the bodies of the requests."""
        bodies: list[Any] = []

        def answer(route: Any) -> None:
            bodies.append(route.request.post_data_json)
            route.fulfill(body=text_of(events), content_type="text/event-stream")

        self.page.unroute(CHAT)
        self.page.route(CHAT, answer)
        return bodies

    def downloaded(self, selector: str) -> str:
        """The text of the file that a button has the browser save."""
        with self.page.expect_download() as caught:
            self[selector].click()
        return str(caught.value.path().read_text("utf-8"))

    def fits(self) -> bool:
        """Whether nothing goes over the right edge."""
        found = self.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        return bool(found)


Visit = Callable[..., Visitor]


def events_of(*contents: str, ending: str = "stop", **delta: Any) -> list[dict[str, Any]]:
    """The events of a stream with these pieces of an answer."""
    choices = [{"delta": {"content": content}, "finish_reason": None} for content in contents]
    if delta:
        choices.insert(0, {"delta": delta, "finish_reason": None})
    choices.append({"delta": {}, "finish_reason": ending})
    events: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
    return [*events, {"choices": [], "usage": {"completion_tokens": len(contents)}}]


def text_of(events: Iterable[dict[str, Any]]) -> str:
    """The body of a stream of these events."""
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join(lines) + "data: [DONE]\n\n"
