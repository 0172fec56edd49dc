"""Each sentence of the page of the server names the tests that hold it."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.helpers.documented import rows, sentences

_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_sentence_of_the_servers_page_has_its_line() -> None:
    begun = [beginning for beginning, _ in rows()]
    assert len(begun) > 100
    missing = [each for each in sentences() if not any(each.startswith(b) for b in begun)]
    assert missing == [], "add lines to docs/serving-tests.md"
    stale = [b for b in begun if not any(each.startswith(b) for each in sentences())]
    assert stale == []


def test_every_test_that_is_named_is_there() -> None:
    named = [pair for _, tests in rows() for pair in _TEST.findall(tests)]
    absent = [
        f"{file}::{name}"
        for file, name in named
        if f"def {name}(" not in (ROOT / file).read_text("utf-8")
    ]
    assert absent == []
    # of the few sentences without a test the reason stands there
    without = [tests for _, tests in rows() if not _TEST.search(tests)]
    assert len(without) < 10
    assert all(len(reason) > 5 for reason in without)
