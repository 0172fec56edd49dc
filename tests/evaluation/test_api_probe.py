"""Models behind a URL are asked for one token before the start, in a dry run too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aift_ray import evaluate
from aift_ray.utils.exit_status import guarded
from tests.conftest import write_rows
from tests.helpers.judge_server import JudgeServer


@pytest.fixture
def api() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.stop()


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    return ["--task", str(write_rows(tmp_path / "rows.jsonl", 2)), "--dry-run"]


def test_an_api_that_answers_is_said_to(
    argv: list[str], api: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(evaluate.run, [*argv, "--base-url", api.url, "--model", "j"]) == 0
    assert (api.probes, api.asked) == (1, [])
    assert f"{api.url}, which answers" in " ".join(capsys.readouterr().out.split())


def test_each_model_that_does_not_answer_is_named_with_other_mistakes(
    argv: list[str], api: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuses = (404, "no such model")
    flags = ["--base-url", api.url, "--model", "x", "--model", "y", "--task", "jnly"]
    assert guarded(evaluate.run, [*argv, *flags]) == 2
    message = capsys.readouterr().err
    for part in ("has no x", "has no y", "it serves j, k", "--model the name", "did you mean jnli"):
        assert part in message
    dead = ["--base-url", "http://127.0.0.1:9/v1", "--model", "x"]
    assert guarded(evaluate.run, [*argv, *dead]) == 2
    assert "base_url: http://127.0.0.1:9/v1/ can't be reached" in capsys.readouterr().err


def test_texts_among_other_rows_are_left_out_and_counted(
    api: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"text": "春はあけぼの。"}\n' * 3)
    argv = ["--task", str(rows), "--base-url", api.url, "--model", "j"]
    assert guarded(evaluate.run, [*argv, "--output", str(tmp_path / "results.json")]) == 0
    note = "task rows_texts is left out (3 texts): no API gives the probability of a first token"
    assert note in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert list(found["scores"]) == ["rows"]
    assert note in found["notes"]
    # a file of texts alone is refused
    (tmp_path / "texts.jsonl").write_text('{"text": "春はあけぼの。"}\n', "utf-8")
    argv[1] = str(tmp_path / "texts.jsonl")
    assert guarded(evaluate.run, [*argv, "--dry-run"]) == 2


def test_choices_need_the_probabilities_of_a_prompt(
    api: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"question": "q", "choices": ["a", "b"], "label": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), "utf-8")
    flags = ["--task", str(tmp_path / "rows.jsonl"), "--base-url", api.url, "--model", "j"]
    assert guarded(evaluate.run, [*flags, "--dry-run"]) == 2
    assert "gives no logprobs of the prompt (echo)" in capsys.readouterr().err
