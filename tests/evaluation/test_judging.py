"""Judged by a model behind a real HTTP server: both orders, what it said, and asked once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aift_ray import evaluate
from aift_ray.commandline import validated
from aift_ray.errors import UserError
from aift_ray.launch import early_checks
from aift_ray.utils.exit_status import guarded
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.judge_server import JudgeServer


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.stop()


@pytest.fixture
def argv(tiny_model: Path, tmp_path: Path, judge: JudgeServer) -> list[str]:
    """Two models on six open questions."""
    rows = write_rows(tmp_path / "rows.jsonl", 6)
    task = tmp_path / "open.yaml"
    task.write_text(
        f'name: open\nfiles: [{rows}]\nprompt: "{{{{ instruction }}}}"\nanswers: ""\n'
        "max_tokens: 12\nscores: [judge_win_rate, judge_grade]\n"
        "judge: {rubric: 丁寧な日本語, highest: 10}\n",
        "utf-8",
    )
    other = make_tiny_model(tmp_path / "other", intermediate_size=64)
    flags = ["--model", str(tiny_model), "--model", str(other), "--task", str(task)]
    flags += ["--judge-url", judge.url, "--judge-model", "j", "--output"]
    return [*flags, str(tmp_path / "out" / "results.json")]


def read(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (tmp_path / "out" / "samples.jsonl").read_text("utf-8").splitlines()
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    return found, [json.loads(line) for line in lines]


def test_pairs_in_both_orders_and_grades(
    argv: list[str], judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    assert guarded(evaluate.run, argv) == 0
    found, samples = read(tmp_path)
    # 12 answers graded, 6 pairs in two orders
    assert len(judge.asked) == 12 + 12
    assert set(judge.keys) == {"Bearer secret"}
    assert all("丁寧な日本語" in each["messages"][0]["content"] for each in judge.asked)
    first, second = found["models"]
    by_model = {m: [s for s in samples if s["model"] == m] for m in found["models"]}
    wins = []
    for a, b in zip(by_model[first], by_model[second], strict=True):
        gap = len(b["answer"]) - len(a["answer"])
        wins.append(0.5 if gap == 0 else float(gap > 0))
        assert b["scores"]["judge_win_rate"] == [wins[-1], 1.0]
        assert len(b["judged"]["judge_win_rate"]["said"]) == 2
        grade = JudgeServer.grade(a["answer"])
        assert a["scores"]["judge_grade"] == [(grade - 1) / 9, 1.0]
        assert a["judged"]["judge_grade"]["said"][0].endswith(f"[[{grade}]]")
    scores = found["scores"]["open"]
    assert scores[second]["judge_win_rate"]["value"] == pytest.approx(sum(wins) / 6)
    assert scores[first]["judge_win_rate"]["value"] == 0.5
    assert found["differences"][0]["value"] == pytest.approx(sum(wins) / 6 - 0.5)
    assert "secret" not in json.dumps(found)
    assert "letters" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_judge_that_prefers_a_place_makes_ties(
    argv: list[str], judge: JudgeServer, tmp_path: Path
) -> None:
    judge.manner = "place"
    assert guarded(evaluate.run, argv) == 0
    values = [s["scores"]["judge_win_rate"] for s in read(tmp_path)[1]]
    assert values == [[0.5, 1.0]] * 12


def test_without_verdicts_there_is_no_score_and_answers_are_kept(
    argv: list[str], judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.manner = "silent"
    assert guarded(evaluate.run, argv) == 1
    assert "I would rather not say" in capsys.readouterr().err
    judge.manner, judge.asked = "length", []
    # the same command asks again where there was no verdict
    assert guarded(evaluate.run, argv) == 0
    assert "resumed: 12 answers" in capsys.readouterr().out
    assert len(judge.asked) == 12 + 12


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((401, "no such key"), ("judge_key_file: http", "no such key", "--judge-key-file FILE")),
        ((404, "no model x"), ("judge_model: http", "has no x", "it serves j, k", "--judge-model")),
        ((500, "broken"), ("judge_url: http", "500: broken", "--judge-url")),
        (None, ("judge_url: http", "can't be reached", "start the server", "--judge-url")),
    ],
)
def test_a_judge_that_does_not_answer_is_told_before_the_start(
    refusal: tuple[int, str] | None,
    told: tuple[str, ...],
    argv: list[str],
    judge: JudgeServer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    judge.refuses = refusal
    if refusal is None:
        argv[argv.index(judge.url)] = "http://127.0.0.1:9/v1"
    if refusal and refusal[0] == 404:
        argv[argv.index("j")] = "x"
    for dry in ([], ["--dry-run"]):
        assert guarded(evaluate.run, [*argv, *dry]) == 2
        message = capsys.readouterr().err
        assert all(part in message for part in told), message
    assert not (tmp_path / "out").exists()
    if refusal:
        assert judge.probes == 2


def test_after_a_judge_died_the_same_command_goes_on(
    argv: list[str], judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.left = 5
    assert guarded(evaluate.run, [*argv, "--max-concurrent", "1"]) == 1
    message = capsys.readouterr().err
    assert "500: out of memory" in message
    assert f"the same command with --output {argv[-1]} goes on" in message
    judge.left = judge.refuses = None
    assert guarded(evaluate.run, argv) == 0
    assert "resumed: 12 answers" in capsys.readouterr().out
    # nothing is asked of it twice but the first half of a pair
    assert len(judge.asked) == 12 + 12 + 1


def test_settings_of_a_judge(capsys: pytest.CaptureFixture[str], rows_file: Path) -> None:
    flags = ["--task", str(rows_file), "--dry-run"]
    assert guarded(evaluate.run, [*flags, "--judge-url", "127.0.0.1"]) == 2
    message = capsys.readouterr().err
    assert "judge_url: '127.0.0.1' is not allowed" in message
    assert "judge_model: is not given" in message
    assert guarded(evaluate.run, [*flags, "--judge-model", "j"]) == 2
    assert "judge_model: acts with judge_url only" in capsys.readouterr().err


def test_a_judged_task_needs_a_judge_and_a_pair_a_second_model(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    task = str(tmp_path / "open.yaml")
    assert guarded(evaluate.run, ["--task", task, "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "give --judge-url and --judge-model" in message
    assert "one is given" in message
    values = {"evaluation": {"tasks": [task]}}
    values |= {"data": {"train_files": [str(tmp_path / "rows.jsonl")]}}
    with pytest.raises(UserError, match="score the trained model with aift-ray evaluate"):
        early_checks.check_run(validated(values))
