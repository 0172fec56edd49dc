"""Data files without a task file: a task of each kind of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aift_ray.config import EvaluateConfig
from aift_ray.config.tasks_config import EvaluationConfig
from aift_ray.errors import DataError, Problem
from aift_ray.tasks import in_training
from aift_ray.tasks.task_files import LoadedTask, read_tasks

ASKED = {"instruction": "首都は。", "output": "東京"}
CHOSEN = {"question": "q", "choices": ["a", "b"], "label": 1}
TEXT = {"text": "春はあけぼの。", "id": 3}


def read(
    folder: Path, rows: list[dict[str, Any]], **settings: Any
) -> tuple[list[LoadedTask], list[Problem]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return read_tasks(EvaluateConfig(tasks=[str(path)], **settings), ["judge_grade"])


def test_a_file_of_one_kind_is_one_task_of_its_name(tmp_path: Path) -> None:
    for row, kind in ((ASKED, "generate"), (CHOSEN, "choice"), (TEXT, "text")):
        (loaded,), problems = read(tmp_path, [row, row])
        assert (loaded.task.name, loaded.task.kind, loaded.mixed) == ("rows", kind, False)
        assert len(loaded.items) == 2
        assert problems == []


def test_a_file_of_several_kinds_is_a_task_of_each(tmp_path: Path) -> None:
    found, problems = read(tmp_path, [TEXT, CHOSEN, ASKED, TEXT, ASKED, TEXT], limit=2)
    assert problems == []
    assert [(each.task.name, each.task.kind) for each in found] == [
        ("rows", "generate"),
        ("rows_choices", "choice"),
        ("rows_texts", "text"),
    ]
    places = [[item.place.rpartition(":")[2] for item in each.items] for each in found]
    # the first rows of each
    assert places == [["3", "5"], ["2"], ["1", "4"]]
    assert all(each.mixed for each in found)
    assert "judge_grade" in found[0].task.scores


def test_a_row_of_no_kind_is_told_by_its_line(tmp_path: Path) -> None:
    _, problems = read(tmp_path, [ASKED, {"answer": "x"}, TEXT])
    assert [problem.where for problem in problems] == [f"{tmp_path / 'rows.jsonl'}:2"]
    _, problems = read(tmp_path, [CHOSEN, {"question": "q", "label": 0}])
    assert "choices" in problems[0].what


def test_examples_before_rows_without_a_task_file_are_refused(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "一", "output": "二"}\n', "utf-8")
    _, problems = read_tasks(EvaluateConfig(tasks=[str(rows)], num_few_shot=2))
    assert [each.where for each in problems] == ["num_few_shot"]
    assert "answered examples" in problems[0].what
    assert not read_tasks(EvaluateConfig(tasks=[str(rows)], num_few_shot=0))[1]


@pytest.mark.parametrize("chat", [True, False])
def test_a_chat_that_changes_no_task_is_refused(tmp_path: Path, chat: bool) -> None:
    _, problems = read(tmp_path, [ASKED, TEXT], chat=chat)
    assert [(each.where, each.remedy) for each in problems] == [
        ("chat", "leave it out, or write a task file")
    ]
    _, problems = read(tmp_path, [TEXT], chat=chat, num_few_shot=1)
    assert [(each.where, each.remedy) for each in problems] == [
        ("num_few_shot", "leave it out"),
        ("chat", "leave it out"),
    ]
    # choices can be asked either way
    found, problems = read(tmp_path, [ASKED, CHOSEN], chat=chat)
    assert problems == []
    assert [each.task.chat for each in found] == [True, chat]


def test_a_setting_of_training_is_called_by_its_whole_name(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ASKED) + "\n", "utf-8")
    with pytest.raises(DataError) as refused:
        in_training.load(EvaluationConfig(tasks=[str(rows)], chat=True, num_few_shot=1))
    assert [each.where for each in refused.value.problems] == [
        "evaluation.num_few_shot",
        "evaluation.chat",
    ]


def test_a_row_that_is_no_json_is_told_to_be_mended(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ASKED) + "\n{nothing\n", "utf-8")
    _, problems = read_tasks(EvaluateConfig(tasks=[str(rows)]))
    assert [(each.where, each.remedy) for each in problems] == [(f"{rows}:2", "mend the row")]
