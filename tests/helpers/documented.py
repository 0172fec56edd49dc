"""The sentences of a page, and what docs/serving-tests.md says holds each."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "serving.md"
README = ROOT / "README.md"
TABLE = ROOT / "docs" / "serving-tests.md"
_WITHIN = re.DOTALL | re.MULTILINE


def plain(text: str) -> str:
    """Without the marks of Markdown, blanks as one."""
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"\s+", " ", re.sub(r"[`*|\[\]]", " ", text)).strip()


def sentences() -> list[str]:
    """What is said of the server: sentences, points and rows of tables, without code."""
    readme = re.search(r"^Answer over HTTP.*?(?=\n\n)", README.read_text("utf-8"), _WITHIN)
    return _sentences(PAGE.read_text("utf-8")) + _sentences(readme[0] if readme else "")


def _sentences(text: str) -> list[str]:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=- )|\n(?=\|)", text):
        block = block.strip()
        rule = re.fullmatch(r"[|\s-]*", block) or re.fullmatch(r"\|[^|]*\|\s*\|", block)
        if not block or block.startswith("#") or rule:
            continue
        if block.startswith("|"):
            found.append(plain(block))
        else:
            found += re.split(r"(?<=[.:!?]) (?=[A-Z`(-])", plain(block.removeprefix("- ")))
    return [each for each in found if re.search(r"\w", each)]


def rows() -> list[tuple[str, str]]:
    """The beginning of each sentence in the table, and its tests or why there are none."""
    lines = TABLE.read_text("utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [(plain(cell[0]).removesuffix("…").strip(), cell[-1].strip()) for cell in cells[1:]]
