"""The files of the page, without a browser: what is vendored, both languages, what is served."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

import aift_ray.serving
from aift_ray.serving.http.web_page import Page

FOLDER = Path(aift_ray.serving.__file__).parent / "page"
OWN = sorted(path for path in FOLDER.iterdir() if path.suffix in (".js", ".css", ".html"))


def get(path: str, **headers: str) -> httpx.Response:
    # a browser of this folder's other tests may have an event loop in this thread
    client = TestClient(Page(PlainTextResponse("behind"), asks_key=True))
    return client.get(path, headers=headers)


def test_the_vendored_files_are_those_that_their_table_names() -> None:
    table = (FOLDER / "vendor" / "README.md").read_text("utf-8")
    named = dict(re.findall(r"^\| `([\w./-]+\.js)` \|.*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
    files = {path.relative_to(FOLDER / "vendor").as_posix(): path for path in FOLDER.rglob("*.js")
             if "vendor" in path.parts}  # fmt: skip
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert found == named
    licences = (FOLDER / "vendor" / "LICENSES.txt").read_text("utf-8")
    versions = re.findall(r"\| (@?[\w./-]+) (\d+\.\d+\.\d+)", table)
    assert len(versions) == 4
    for name, version in versions:
        assert f"==== {name} {version}\n" in licences


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_file_is_short_and_never_makes_html_of_a_text(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 300
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser|new Function"
    )
    assert re.findall(sinks, text) == []
    assert re.findall(r"\son\w+=|javascript:", text) == []


def words(language: str) -> dict[str, str]:
    text = (FOLDER / f"{language}.js").read_text("utf-8")
    return dict(re.findall(r'^  (\w+):\s+"(.*)",$', text, re.MULTILINE))


def test_both_languages_have_the_same_texts_with_the_same_blanks_and_all_are_used() -> None:
    japanese, english = words("ja"), words("en")
    assert list(japanese) == list(english)
    assert len(japanese) > 100
    for name, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(
            re.findall(r"\{\w+\}", japanese[name])
        )
    code = "".join(path.read_text("utf-8") for path in OWN if path.stem not in ("ja", "en"))
    quoted = set(re.findall(r'"(\w+)"|\b(preset_\w+):|name: "(\w+)"', code))
    used = {name for names in quoted for name in names if name}
    made = {name for name in english if name.startswith("error_") or name.endswith("_hint")}
    assert set(english) - used - made == set()


def test_a_file_is_sent_once_and_then_only_when_it_changed() -> None:
    first = get("/page/page.js")
    assert first.status_code == 200
    again = get("/page/page.js", **{"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["Content-Security-Policy"] == first.headers["Content-Security-Policy"]
    assert get("/page/page.js", **{"If-None-Match": '"other"'}).content == first.content


def test_every_file_that_the_page_names_is_served_and_nothing_else() -> None:
    index = get("/").text
    names = set(re.findall(r'(?:src|href)="(page/[^"]+)"', index))
    pending = {f"/{name}" for name in names}
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        seen.add(path)
        answer = get(path)
        assert answer.text != "behind", path
        imported = re.findall(
            r"""^(?:import|\} from).*?["'](\.[^"']+)""", answer.text, re.MULTILINE
        )
        folder = path.rpartition("/")[0]
        pending |= {str(Path(f"{folder}/{name}")) for name in imported} - seen
    scripts = {f"/page/{path.relative_to(FOLDER).as_posix()}" for path in FOLDER.rglob("*.js")}
    assert scripts <= seen
    for path in ("/page/vendor/README.md", "/page/vendor/LICENSES.txt", "/page/%2e%2e/web.py"):
        assert get(path).text == "behind"
