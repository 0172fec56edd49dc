"""Data files: found by patterns, read as examples, and judged as the shared data say."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aift_ray.data.examples import Example
from aift_ray.data.readers.reader_options import TextUnit
from aift_ray.data.readers.sources import expand_files, read_examples
from aift_ray.errors import DataError
from tests.helpers.reading import ROW, Write, lines_of, outputs, read, writer

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
BAD = SHARED / "bad"
FORMATS = SHARED / "formats"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


class TestText:
    TEXT = "\n一\r\n二\u2028\n\u3000\n\n三 \n\n"

    def test_each_line_is_a_document(self, write: Write) -> None:
        path = write("a.txt", self.TEXT)
        assert outputs(path) == ["一", "二\u2028", "三 "]
        assert lines_of(path) == [2, 3, 6]

    def test_paragraphs_are_parted_by_blank_lines(self, write: Write) -> None:
        path = write("a.txt", self.TEXT)
        assert outputs(path, "paragraph") == ["一\n二\u2028", "三 "]
        assert lines_of(path, "paragraph") == [2, 6]

    def test_a_file_is_a_document(self, write: Write) -> None:
        path = write("a.txt", self.TEXT)
        assert outputs(path, "file") == ["一\n二\u2028\n\u3000\n\n三 "]
        assert lines_of(path, "file") == [2]

    @pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
    def test_no_text_is_a_wrong_file(self, write: Write, unit: TextUnit) -> None:
        assert lines_of(write("a.txt", "\n \n\u3000\n"), unit) == [None]

    def test_nul_bytes_are_wrong_rows(self, write: Write) -> None:
        rows, [fault] = read(write("a.txt", "a\n\0\0\nb\n"))
        assert (len(rows), fault.line) == (2, 2)


class TestExpandFiles:
    def test_files_folders_and_globs_are_found_once_and_sorted(
        self, write: Write, tmp_path: Path
    ) -> None:
        for name in ("b.jsonl", "a.JSONL.gz", "c.txt", "README.md", ".hidden.txt"):
            write(name, "x")
        (tmp_path / "sub.txt").mkdir()
        names = [str(tmp_path / "c.txt"), str(tmp_path), str(tmp_path / "*.jsonl")]
        found = expand_files(names)
        assert [path.name for path in found] == ["c.txt", "a.JSONL.gz", "b.jsonl"]

    def test_a_name_with_glob_characters_is_a_file_first(self, write: Write) -> None:
        path = write("a[1].txt", "x")
        assert expand_files([str(path)]) == [path]

    def test_paths_stay_as_the_user_named_them(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write("a.txt", "x")
        monkeypatch.chdir(tmp_path)
        assert expand_files(["a.txt"]) == [Path("a.txt")]

    def test_no_pattern_gives_no_file(self) -> None:
        assert expand_files([]) == []

    def test_all_problems_come_at_once(self, write: Write, tmp_path: Path) -> None:
        write("train.jsonl", ROW)
        write("a.xyz", ROW)
        (tmp_path / "empty").mkdir()
        os.mkfifo(tmp_path / "pipe.txt")
        (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
        names = ["trian.jsonl", "*.none", "a.xyz", "empty", "pipe.txt", "dangling.txt", "b\0.txt"]
        with pytest.raises(DataError) as caught:
            expand_files([*(str(tmp_path / name) for name in names), "", "x.parquet.gz"])
        problems = caught.value.problems
        assert len(problems) == len(names) + 2
        assert "did you mean" in problems[0].remedy
        assert "train.jsonl" in problems[0].remedy
        assert ".xyz" in problems[2].what

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file_is_a_problem(self, write: Write) -> None:
        path = write("a.txt", "x")
        path.chmod(0)
        with pytest.raises(DataError, match="may not be read"):
            expand_files([str(path)])


def test_a_missing_file_and_an_unknown_suffix_are_wrong_files(write: Write, tmp_path: Path) -> None:
    rows, faults = read(tmp_path / "gone.txt", write("a.xyz", ROW), tmp_path)
    assert not rows
    assert [fault.line for fault in faults] == [None, None, None]


def _rows(path: Path) -> Iterator[str]:
    text = "日本語" * 200
    for number in range(16_000):
        if path.suffix == ".jsonl":
            yield json.dumps({"instruction": str(number), "output": text}, ensure_ascii=False)
        elif path.suffix == ".csv":
            yield f'{number},"{text}\n"' if number else "instruction,output"
        else:
            sign = "," if number else "["
            row = json.dumps({"instruction": str(number), "output": text}, ensure_ascii=False)
            yield f"{sign}{row}"
    if path.suffix == ".json":
        yield "]"


@pytest.mark.parametrize(
    ("name", "separator"),
    [("a.jsonl", "\n"), ("a.json", "\n"), ("one_line.json", ""), ("a.csv", "\n")],
)
def test_a_file_is_not_held_in_memory(tmp_path: Path, name: str, separator: str) -> None:
    path = tmp_path / name
    with path.open("w", encoding="utf-8") as file:
        file.writelines(row + separator for row in _rows(path))
    assert path.stat().st_size > 28e6
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Example) for item in read_examples([path]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= 15_999
    assert peak < 12e6


def _expected() -> list[Any]:
    path = BAD / "expected.json"
    if not path.exists():
        skip = pytest.mark.skip(reason="the shared test data are not here")
        return [pytest.param({}, marks=skip, id="absent")]
    return [pytest.param(case, id=case["file"]) for case in json.loads(path.read_text("utf-8"))]


@pytest.mark.parametrize("case", _expected())
def test_the_bad_files_are_judged_as_expected(case: dict[str, Any]) -> None:
    rows, faults = read(BAD / case["file"])
    if case["expect"] == "reject_file":
        assert [fault.line for fault in faults] == [None]
        for place in case["faults"]:
            assert faults[0].reason.startswith(f"line {place['line']}: ")
        return
    assert len(rows) == case["good_rows"]
    wrong = case["faults"] if case["expect"] == "reject_rows" else []
    assert [fault.line for fault in faults] == [place["line"] for place in wrong]


@pytest.mark.skipif(not FORMATS.exists(), reason="the shared test data are not here")
@pytest.mark.parametrize(
    "names",
    [
        ["instruction"],
        ["instruction_multiline"],
        ["prompt_completion"],
        ["text"],
        ["messages", "conversations"],
        ["multi_turn_messages", "multi_turn_conversations"],
    ],
    ids=lambda names: names[0],
)
def test_all_formats_of_a_kind_give_equal_examples(names: list[str]) -> None:
    files = [path for name in names for path in sorted(FORMATS.glob(f"{name}.*"))]
    assert len(files) > 1
    sets = []
    for path in files:
        rows, faults = read(path)
        assert not faults
        sets.append([replace(row, file="", line=0) for row in rows])
    assert all(found == sets[0] for found in sets)
