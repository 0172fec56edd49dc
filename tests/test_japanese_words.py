"""One word for one thing in the Japanese pages: the terms that readers of the field expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

WEB_PAGE = ROOT / "aift_ray" / "serving" / "page"
FILES = [ROOT / "README.ja.md", *(ROOT / "docs" / "ja").glob("*.md")]
FILES += [WEB_PAGE / "ja.js", WEB_PAGE / "index.html"]
# what is not written, and what stands in its place
WORDS = {
    "要求": "リクエスト",
    "経路": "エンドポイント",
    "注釈": "コメント",
    "配る": "公開する",
    "文脈長": "コンテキスト長",
    "何もしなくてよい": "対処は不要です",
    "見込みのないもの": "見込みの薄い試行",
    "始まりが同じ": "先頭が共通する",
    "フォルダ(?!ー)": "フォルダー",
    "メモリ(?!ー)": "メモリー",
    "アダプタ(?!ー)": "アダプター",
    "サーバ(?!ー)": "サーバー",
    "ワーカ(?!ー)": "ワーカー",
    "ユーザ(?!ー)": "ユーザー",
    "ブラウザ(?!ー)": "ブラウザー",
    "パラメータ(?!ー)": "パラメーター",
    "コンテナ(?!ー)": "コンテナー",
    r"[ぁ-んァ-ヶー一-龠]\(": "（",
}


@pytest.mark.parametrize("old", WORDS)
def test_a_word_is_the_same_on_every_page(old: str) -> None:
    found = [place(path, line) for path in FILES for line in lines(path) if re.search(old, line)]
    assert found == [], f"write {WORDS[old]}"


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def place(path: Path, line: str) -> str:
    return f"{path.relative_to(ROOT)}: {line.strip()}"
