"""Files of tasks are read by the readers of training, with all their fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aift_ray.errors import Problem
from aift_ray.tasks.data_files import Row, is_data_file, read_rows

ROWS = [{"question": "空の色は？", "choices": ["赤", "青"], "label": 1}, {"question": "草の色は？"}]


def read(path: Path) -> tuple[list[Row], list[Problem]]:
    problems: list[Problem] = []
    return read_rows(path, problems), problems


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.zst"])
def test_every_field_is_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = lines(ROWS)
    if name.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes(content)
    assert is_data_file(path)
    assert read(path) == ([(1, ROWS[0]), (2, ROWS[1])], [])


def test_a_table_from_excel_in_cp932(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("質問,答え\r\n日本の首都はどこですか,東京\r\n".encode("cp932"))
    assert read(path) == ([(2, {"質問": "日本の首都はどこですか", "答え": "東京"})], [])


def test_a_workbook(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["question", "answers"])
    book.active.append(["日本の首都は", "東京"])
    book.save(tmp_path / "rows.xlsx")
    found = read(tmp_path / "rows.xlsx")
    assert found == ([(2, {"question": "日本の首都は", "answers": "東京"})], [])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", '{"label": 0, "label": 1}\n', 'the key "label" is repeated'),
        ("rows.jsonl", '{"label": NaN}\n', "NaN, which is not JSON"),
        ("rows.csv", "a,a\n1,2\n", 'duplicate column "a"'),
        ("rows.json", '[{"a": 1}, 3]', "row 2: the row is no object"),
    ],
)
def test_what_training_refuses_is_refused(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    problems = read(path)[1]
    assert said in problems[0].what
