"""What docs/architecture.md and CONTRIBUTING.md say of files and imports is true."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from tests import architecture
from tests.conftest import ROOT

PACKAGE = ROOT / "aift_ray"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
PAGES = ("docs/architecture.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in DECISIONS))


def test_the_table_of_imports_is_that_of_the_import_graph() -> None:
    text = architecture.PAGE.read_text("utf-8")
    assert text == architecture.written(text), "run python -m tests.architecture"


def test_no_two_modules_have_the_same_name() -> None:
    names = Counter(p.name for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    # the documented import paths of the Python API and of Serve config files
    documented = {"serving.py", "ingress.py", "quantization.py", "preference.py"}
    assert {name for name, number in names.items() if number > 1} <= documented


def test_no_two_classes_have_the_same_name() -> None:
    found = Counter(
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"(?m)^class (\w+)", path.read_text("utf-8"))
    )
    assert [name for name, number in found.items() if number > 1] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    named = re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]*(?:\.py|/)?)`", text)
    for name in named:
        places = (ROOT / name, PACKAGE / name, PACKAGE / f"{name}.py")
        assert any(place.exists() for place in places), name


def test_every_test_file_that_a_page_names_is_there() -> None:
    pages = [ROOT / "README.md", ROOT / "README.ja.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\b(tests/[\w/]+\.(?:py|json))", page.read_text("utf-8"))
    }
    assert len(named) > 50
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []


def test_every_source_file_that_a_page_names_is_there() -> None:
    named = {
        (page.name, name)
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"`(?:aift_ray/)?([a-z_]+/[a-z_/0-9]+\.py)", page.read_text("utf-8"))
    }
    places = {(page, name): (PACKAGE / name, ROOT / name) for page, name in named}
    assert len(named) > 10
    assert sorted(p for p, where in places.items() if not any(w.exists() for w in where)) == []


def test_hardly_a_parameter_is_of_any_type() -> None:
    kinds: Counter[bool] = Counter()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.arg) and node.annotation is not None:
                kinds[ast.unparse(node.annotation) == "Any"] += 1
    assert kinds[False] > 5000
    # what is left passes arguments on
    assert kinds[True] / kinds.total() < 0.006


def test_files_and_functions_stay_short() -> None:
    long_files, long_functions = [], []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if text.count("\n") > 300:
            long_files.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long_functions += [f"{path.name}: {node.name}"] if lines > 60 else []
    assert long_files == []
    assert long_functions == []
