"""Rows of tasks that `datasets` reads, from a folder here: there is no Hub."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from aift_ray.config import EvaluateConfig
from aift_ray.errors import DataError
from aift_ray.tasks.task_files import BUILT_IN, built_in
from aift_ray.tasks.task_yaml import read_task
from tests.helpers.tasks import load_tasks

HAS_DATASETS = find_spec("datasets") is not None
ROWS = [{"q": f"{n}足す{n}は？", "a": [str(2 * n)]} for n in range(4)]


def task_file(folder: Path, dataset: str) -> Path:
    path = folder / "sums.yaml"
    path.write_text(
        "name: sums\nfiles: [sums.jsonl]\n"
        f"hub:\n  sums.jsonl: {{path: {dataset}, split: test}}\n"
        'prompt: "{{ q }}"\nanswers: a\nscores: [exact_match]\n',
        "utf-8",
    )
    return path


@pytest.mark.skipif(not HAS_DATASETS, reason="datasets is not installed: make test-harness")
def test_rows_come_from_a_dataset_where_the_file_is_not_there(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS]
    (dataset / "test.jsonl").write_text("".join(lines), "utf-8")
    path = task_file(tmp_path, str(dataset))
    [task] = load_tasks(EvaluateConfig(tasks=[str(path)]))
    assert [item.prompt for item in task.items] == [row["q"] for row in ROWS]
    assert [item.answers for item in task.items] == [tuple(row["a"]) for row in ROWS]
    # a file that is there is what is read
    (tmp_path / "sums.jsonl").write_text(lines[3], "utf-8")
    [task] = load_tasks(EvaluateConfig(tasks=[str(path)]))
    assert [item.prompt for item in task.items] == [ROWS[3]["q"]]


@pytest.mark.skipif(not HAS_DATASETS, reason="datasets is not installed: make test-harness")
def test_a_dataset_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    path = task_file(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"sums\.jsonl is missing.*nowhere can't be read") as wrong:
        load_tasks(EvaluateConfig(tasks=[str(path)]))
    assert "put it there" in str(wrong.value)


@pytest.mark.skipif(HAS_DATASETS, reason="datasets is installed")
def test_without_datasets_the_command_that_installs_it_is_told(tmp_path: Path) -> None:
    path = task_file(tmp_path, "somebody/sums")
    with pytest.raises(DataError, match=r"somebody/sums, is not installed") as wrong:
        load_tasks(EvaluateConfig(tasks=[str(path)]))
    assert "pip install 'aift-ray[datasets]'" in str(wrong.value)


def test_built_in_tasks_name_datasets_of_their_own_files() -> None:
    for name in built_in():
        read = read_task(BUILT_IN / f"{name}.yaml")
        assert not read.wrong
        assert read.task is not None
        assert set(read.task.hub) <= {*read.task.files, *read.task.few_shot.files}
