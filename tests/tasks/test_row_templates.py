"""What a template may not write, and lists that say a thing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aift_ray.tasks.row_templates import WrongField, render
from aift_ray.tasks.task import Task


def task(tmp_path: Path, **given: Any) -> Task:
    needed = {"name": "t", "files": [str(tmp_path / "rows.jsonl")], "prompt": "{{ question }}"}
    return Task.model_validate(needed | {"answers": "answer"} | given)


@pytest.mark.parametrize(("value", "what"), [(None, "null"), ({"a": 1}, "an object")])
def test_null_and_objects_are_not_written_as_python_writes_them(
    tmp_path: Path, value: object, what: str
) -> None:
    with pytest.raises(WrongField, match=f"prompt: it would write {what}"):
        render(task(tmp_path), "prompt", {"question": value})
    prompt = "{{ question | tojson }}"
    assert render(task(tmp_path, prompt=prompt), "prompt", {"question": None}) == "null"


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"stop": [""]}, "stop"),
        ({"scores": ["exact_match", "exact_match"]}, "scores"),
        ({"kind": "choice", "choices": ["x", "x"], "label": "0", "answers": ""}, "choices"),
    ],
)
def test_what_would_empty_or_double_scores_is_refused(
    tmp_path: Path, given: dict[str, Any], where: str
) -> None:
    assert where in [problem.where for problem in task(tmp_path, **given).contradictions()]
