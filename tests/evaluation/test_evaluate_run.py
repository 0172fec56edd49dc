"""The launched command: results, adapters, a kill in its midst, and what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray import evaluate
from aift_ray.evaluation import evaluate_run
from aift_ray.utils.exit_status import guarded
from tests.conftest import ROOT, write_rows
from tests.quantization.conftest import make_adapter

Command = Callable[..., subprocess.CompletedProcess[str]]


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "aift_ray", "evaluate", *map(str, argv)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """24 rows of a choice task."""
    path = tmp_path / "colours.jsonl"
    rows = [
        {
            "question": f"{at}番目の花は何色ですか。",
            "choices": ["赤", "とても青い", "緑色"],
            "label": at % 3,
        }
        for at in range(24)
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def read(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (output.parent / "samples.jsonl").read_text("utf-8").splitlines()
    return json.loads(output.read_text("utf-8")), [json.loads(line) for line in lines]


def test_a_base_and_its_adapter_in_one_table(
    tiny_model: Path, choices: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    output = tmp_path / "out" / "results.json"
    task = tmp_path / "short.yaml"
    task.write_text(
        f'name: short\nfiles: [{rows}]\nprompt: "{{{{ instruction }}}}"\nanswers: output\n'
        "max_tokens: 8\nscores: [exact_match, character_f1]\n",
        "utf-8",
    )
    argv = ["--model", tiny_model, "--adapter", f"tuned={adapter}", "--output", output]
    done = subprocess.run(
        command(*argv, "--task", choices, "--task", task),
        env=environment() | {"COLUMNS": "40"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, samples = read(output)
    assert found["models"] == [tiny_model.name, "tuned"]
    assert set(found["scores"]) == {"colours", "short"}
    assert len(samples) == 2 * (24 + 4)
    assert [d["model"] for d in found["differences"]] == ["tuned", "tuned"]
    for model in found["models"]:
        rows_ = [s for s in samples if s["model"] == model and s["task"] == "colours"]
        right = [s["predicted"] == s["label"] for s in rows_]
        score = found["scores"]["colours"][model]["accuracy"]
        assert score["value"] == sum(right) / 24
        assert score["low"] <= score["value"] <= score["high"]
    # the adapter is really on
    first, second = (
        [s["log_likelihoods"] for s in samples if s["model"] == m and s["task"] == "colours"]
        for m in found["models"]
    )
    assert first != second
    # a narrow terminal cuts nothing off
    assert len(re.findall(r"^    tuned: [\d.]+ \[.+\]$", done.stdout, re.MULTILINE)) == 4
    assert len(re.findall(r"^      [+-][\d.]+, p \S+: .+$", done.stdout, re.MULTILINE)) == 2
    assert (output.parent / "report.html").is_file()


def test_a_killed_evaluation_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    output = tmp_path / "out" / "results.json"
    argv = command("--model", tiny_model, "--task", rows, "--output", output, "--max-concurrent", 1)
    partial = output.parent / ".samples.partial.jsonl"
    process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not partial.exists() or partial.read_text("utf-8").count("\n") < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = partial.read_text("utf-8").count("\n")
    assert not output.exists()
    # a line that was being written
    with partial.open("a", encoding="utf-8") as file:
        file.write('["half a li')
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"resumed: {there} answers are there already" in done.stdout
    _, samples = read(output)
    whole = tmp_path / "whole" / "results.json"
    again = command("--model", tiny_model, "--task", rows, "--output", whole)
    assert subprocess.run(again, env=environment(), timeout=300, check=False).returncode == 0
    assert [s["written"] for s in samples] == [s["written"] for s in read(whole)[1]]
    assert not partial.exists()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command; it must refuse and write nothing. The message."""

    def call(*argv: object) -> str:
        output = tmp_path / "refused" / "results.json"
        flags = [str(each) for each in argv] + ["--output", str(output)]
        for dry in ([], ["--dry-run"]):
            status = guarded(evaluate.run, [*flags, *dry])
            message = capsys.readouterr().err
            assert status == 2, message
            assert "Traceback" not in message
            assert not output.parent.exists()
        return message

    return call


def test_everything_that_is_wrong_is_told_at_once(
    refused: Callable[..., str], tmp_path: Path, choices: Path
) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(
        'name: t\nkind: choice\nfiles: [colours.jsonl]\nprompt: "{{ question"\n'
        "choices: choices\nscores: [exact_match]\n",
        "utf-8",
    )
    message = refused("--model", "hina-4", "--task", task, "--task", "jnly", "--task", "jnli")
    assert "did you mean hina-4m" in message
    assert f"{task}:4: prompt: is no template" in message
    assert f"{task}:6: scores: 'exact_match' is not allowed for kind choice" in message
    assert "did you mean jnli?" in message
    assert "CC BY-SA 4.0" in message
    assert "--data-dir" in message


def test_unknown_fields_of_a_task_are_named_by_line(
    refused: Callable[..., str], tmp_path: Path, choices: Path
) -> None:
    task = tmp_path / "task.yaml"
    text = 'name: t\nfiles: [colours.jsonl]\nprompt: "{{ question }}"\nmax_token: 3\n'
    task.write_text(text + "few_shot:\n  number: -1\nscores: [rouge]\nfewshot: 2\n", "utf-8")
    message = refused("--task", task)
    assert f"{task}:4: max_token: there is no such setting" in message
    assert "max_tokens" in message
    assert f"{task}:6: few_shot.number" in message
    assert f"{task}:7: scores: 'rouge' is not allowed" in message
    assert "did you mean 'few_shot'?" in message


def test_wrong_rows_are_named(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"question": "q", "choices": ["a", "b"], "label": 0}\n'
        '{"question": "q", "choices": ["a", "b"], "label": 2}\n'
        '{"question": "q", "choices": ["a"], "label": 0}\n'
        '{"choices": ["a", "b"], "label": 0}\n',
        "utf-8",
    )
    message = refused("--task", rows)
    assert "rows.jsonl:2: task rows: label: label is 2" in message
    assert "rows.jsonl:3: task rows: choices" in message
    assert "rows.jsonl:4" in message
    assert "question" in message


def test_an_expression_that_fails_on_a_row_names_the_row(
    refused: Callable[..., str], choices: Path
) -> None:
    task = choices.parent / "task.yaml"
    text = 'name: t\nfiles: [colours.jsonl]\nprompt: "{{ question }}"\nanswers: label + question\n'
    task.write_text(text, "utf-8")
    message = refused("--task", task)
    assert f"{task}:4: answers: TypeError(" in message
    assert "(colours.jsonl:1, and so in 23 more rows)" in message


def test_a_field_that_rows_lack_is_told_once(refused: Callable[..., str], choices: Path) -> None:
    task = choices.parent / "task.yaml"
    text = 'name: t\nfiles: [colours.jsonl]\nprompt: "{{ qestion }}"\nanswers: lable\n'
    task.write_text(text, "utf-8")
    message = refused("--task", task)
    assert f"{task}:3: prompt: 'qestion' is undefined; the row has 'que" in message
    assert f"{task}:4: answers: 'lable' is undefined; the row has 'que" in message
    assert message.count("(colours.jsonl:1, and so in 23 more rows)") == 2
    assert "colours.jsonl:2" not in message


def test_a_model_that_is_named_twice_is_one_mistake(
    refused: Callable[..., str], choices: Path
) -> None:
    message = refused("--task", choices, "--model", "hina-4m", "--model", "hina-4m")
    assert "models: hina-4m is given twice" in message
    assert "1 problem" in message


def test_the_rows_that_ship_are_scored_by_their_kinds(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    shipped = ROOT / "examples" / "rows.jsonl"
    argv = command("--task", shipped, "--output", output, "--limit", 2)
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, samples = read(output)
    assert list(found["scores"]) == ["rows", "rows_texts"]
    assert [s["place"] for s in samples] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:6"]


def test_a_template_can_do_no_harm(refused: Callable[..., str], choices: Path) -> None:
    task = choices.parent / "task.yaml"
    harm = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    task.write_text(f'name: t\nfiles: [colours.jsonl]\nprompt: "{harm}"\nanswers: label\n', "utf-8")
    assert "unsafe" in refused("--task", task)


def test_rows_of_the_training_data_are_counted_beside_the_score(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2, offset=22)
    other = {
        "instruction": "枕草子の書き出しを、現代の言葉で説明してください。",
        "output": "春は夜明け。",
    }
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(other, ensure_ascii=False) + "\n")
    trained = write_rows(tmp_path / "trained.jsonl", 24)
    output = tmp_path / "out" / "results.json"
    argv = ["--model", tiny_model, "--task", rows, "--training-data", trained, "--output", output]
    assert guarded(evaluate.run, list(map(str, argv))) == 0
    found, samples = read(output)
    assert found["contamination"]["rows"]["seen"] == 2
    assert [sample["overlap"] >= 0.5 for sample in samples] == [True, True, False]
    score = found["scores"]["rows"][tiny_model.name]["exact_match"]
    assert score["unseen"]["rows"] == 1
    assert "unseen" in (output.parent / "report.html").read_text("utf-8")


def test_training_data_that_are_not_there_are_named(
    refused: Callable[..., str], choices: Path, tmp_path: Path
) -> None:
    message = refused("--task", choices, "--training-data", tmp_path / "no.jsonl")
    assert "training_data" in message
    assert "there is no such file" in message
    assert "acts with training_data only" in refused("--task", choices, "--overlap_characters", 9)


def test_settings_that_do_not_go_together(refused: Callable[..., str], choices: Path) -> None:
    message = refused(
        "--task", choices, "--base-url", "127.0.0.1:8000", "--dtype", "bf16", "--adapter", "x"
    )
    assert "give an http:// or https:// address" in message
    assert "dtype: does not act with base_url" in message
    assert "adapters: names folders" in message
    assert "give --model NAME" in message
    assert "no task is given" in refused()


def test_results_are_not_overwritten(tmp_path: Path, choices: Path) -> None:
    (tmp_path / "results.json").write_text("{}", "utf-8")
    argv = ["--task", str(choices), "--output", str(tmp_path / "results.json"), "--dry-run"]
    assert guarded(evaluate.run, argv) == 2
    assert guarded(evaluate.run, [*argv, "--overwrite"]) == 0


def test_a_single_row_is_said_to_tell_little(
    choices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--task", str(choices), "--limit", "1", "--output", str(tmp_path / "results.json")]
    assert guarded(evaluate.run, argv) == 0
    assert "task colours: a single row" in " ".join(capsys.readouterr().out.split())


def test_the_time_that_is_left_does_not_count_the_wait_for_the_first_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # once where it is made, then once for each part
    times = iter((0.0, 0.0, 60.0, 70.0, 80.0))
    monkeypatch.setattr(evaluate_run.time, "monotonic", lambda: next(times))
    progress = evaluate_run._Progress("m", 30)
    for number in (2, 10, 18):
        progress.add(number)
    told = [line for line in capsys.readouterr().out.splitlines() if line]
    assert told == [
        "m: 2/30 answers, 60 s",
        "m: 12/30 answers, 70 s, 18 s left",
        "m: 30/30 answers, 80 s",
    ]
