"""Scores of tasks while training are those of one process, however the model is spread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.runs import run_dir
from tests.conftest import write_rows
from tests.helpers.runs import whole_on_workers
from tests.helpers.whole_runs import run

SPREAD: dict[str, dict[str, Any]] = {
    "ddp": {"parallel__strategy": "ddp"},
    "fsdp": {"parallel__strategy": "fsdp"},
    "tensor": {"parallel__strategy": "tensor", "training__batch_size": 4},
    "pipeline": {"parallel__strategy": "pipeline", "training__batch_size": 4},
}


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Files of a task of each kind; five rows are uneven shares."""
    rows = [{"question": f"{at}番目の花は何色？", "label": at % 3} for at in range(5)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "colours.jsonl").write_text(lines, "utf-8")
    head = 'kind: choice\nfiles: [colours.jsonl]\nprompt: "{{ question }}"\n'
    text = f"name: colours\n{head}choices: [赤, とても青い, 緑色]\nscores: [accuracy_normalized]\n"
    (tmp_path / "colours.yaml").write_text(text, "utf-8")
    written = "name: written\nfiles: [answers.jsonl]\nanswers: output\nmax_tokens: 6\n"
    scores = 'prompt: "{{ instruction }}"\nscores: [character_f1, pearson]\n'
    (tmp_path / "written.yaml").write_text(written + scores, "utf-8")
    write_rows(tmp_path / "answers.jsonl", 3)
    texts = "".join(json.dumps({"text": f"{at}番目の花は赤い。"}) + "\n" for at in range(3))
    (tmp_path / "texts.jsonl").write_text(texts, "utf-8")
    return [str(tmp_path / name) for name in ("colours.yaml", "written.yaml", "texts.jsonl")]


@pytest.mark.slow
def test_two_workers_give_the_scores_of_one(
    configure: Callable[..., Any], tasks: list[str], tmp_path: Path
) -> None:
    common = {
        "evaluation__tasks": tasks,
        "evaluation__batch_size": 2,
        "training__max_steps": 2,
        "training__batch_size": 2,
        "training__gradient_accumulation_steps": 2,
    }
    # the global batch of two replicas of two examples
    run(configure(**common | {"training__batch_size": 4}), tmp_path / "alone")
    configs = {name: configure(**common | how) for name, how in SPREAD.items()}
    whole_on_workers(configs, tmp_path)
    alone = run_dir.summary(tmp_path / "alone")
    for name in SPREAD:
        found = run_dir.summary(tmp_path / name)
        for when in ("tasks_before", "tasks"):
            for task, scores in alone[when].items():
                for score, value in scores.items():
                    wanted = pytest.approx(value["value"], rel=1e-3, abs=1e-6)
                    assert found[when][task][score]["value"] == wanted, (name, when, task, score)
