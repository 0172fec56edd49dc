"""The documentation site: every page is found; both languages show the same names and commands."""

from __future__ import annotations

import re
from pathlib import Path

import aift_ray
from tests.conftest import ROOT

PAGES = ("docs/api.md", "docs/ja/api.md")


def shown(page: str) -> list[str]:
    """What a page is generated from."""
    return re.findall(r"^::: (\S+)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)


def test_both_pages_show_the_same() -> None:
    assert shown(PAGES[0]) == shown(PAGES[1])


def test_every_public_name_is_shown() -> None:
    names = set(shown(PAGES[0]))
    for name in set(aift_ray.__all__) - {"__version__", "RunConfig"}:
        home = getattr(aift_ray, name).__module__
        assert f"{home}.{name}" in names or home in names, name


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"{page.relative_to(ROOT / 'docs')}\n" in site


def code(page: Path) -> set[str]:
    """The lines of code of a page, without comments."""
    text = page.read_text("utf-8")
    fenced = "".join(re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^ {4}(.*)$", text, re.MULTILINE) + fenced.splitlines()
    return {re.sub(r"\s+# .*", "", line).strip() for line in lines}


def test_every_command_of_a_japanese_page_is_one_of_its_english_page() -> None:
    for page in (ROOT / "docs" / "ja").glob("*.md"):
        if page.name == "messages.md":
            # explains what is printed, and has no English page
            continue
        # what is left holds text in Japanese, such as a list of files
        commands = {line for line in code(page) if line.isascii()}
        assert commands <= code(ROOT / "docs" / page.name), page.name


def test_every_message_that_is_explained_is_printed() -> None:
    page = (ROOT / "docs/ja/messages.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 70
    source = "".join(p.read_text("utf-8") for p in sorted((ROOT / "aift_ray").rglob("*.py")))
    # a sentence may be broken over two literals
    joined = re.sub(r"\"\s*\n\s*f?\"", "", source)
    assert [one for one in messages if one not in source and one not in joined] == []
