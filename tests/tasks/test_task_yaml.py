"""Mistakes in task files: all at once, each with file, line and field, in their order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aift_ray.config import EvaluateConfig
from aift_ray.errors import DataError
from aift_ray.tasks.task_yaml import read_task
from tests.conftest import ROOT
from tests.helpers.tasks import load_tasks

ONE = """name: one
files: [rows.jsonl, none.jsonl]
prompt: "{{ question"
few_shot:
  foo: 1
  nummber: 2
max_token: 3
scores: [exact_match, pass_at_1, judge_grade]
program: "print(1)"
choices: x
name: two
"""
TWO = """name: two
kind: choice
files: [rows.jsonl]
prompt: "{{ question }}"
choices: choices
few_shot: {number: -1}
"""
ROWS = """{"question": "q", "choices": ["a", "b"], "label": 0, "answers": "a"}
{"question": "q", "choices": ["a", "b"], "label": 2, "answers": "b"}
{"question":
"""


def test_every_mistake_of_every_file_and_of_the_command_in_one_message(tmp_path: Path) -> None:
    files = {"1.yaml": ONE, "2.yaml": TWO, "3.yaml": "name: x\n  kind: [x\n", "rows.jsonl": ROWS}
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    argv = ["--task", "2.yaml", "--task", "3.yaml", "--task", "1.yaml", "--task", "jnly"]
    argv += ["--model", "hina-4", "--limit", "-1", "--adapter", "none", "--tsak", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "aift_ray", "evaluate", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    told = re.findall(r"^  - (.+)", done.stderr, re.MULTILINE)
    places = [re.match(r"\S+:\d+(?:: (?:task )?[\w.]+)?(?=:)|[^:]+", each)[0] for each in told]
    assert places == [
        *("--tsak", "limit", "task jnly", "model hina-4", "adapter none"),
        *("1.yaml:2: files", "1.yaml:3: prompt", "1.yaml:5: few_shot.foo"),
        *("1.yaml:6: few_shot.nummber", "1.yaml:7: max_token", "1.yaml:8: scores"),
        *("1.yaml:8: scores", "1.yaml:9: program", "1.yaml:10: choices", "1.yaml:11: name"),
        *("1.yaml:11: name", "2.yaml:6: few_shot.number", "3.yaml:2"),
        *("rows.jsonl:2: task two", "rows.jsonl:3"),
    ], done.stderr


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("few_shot: {foo: 1}", "expected {files, number}"),
        ("few_shot: {nummber: 1}", "did you mean 'few_shot.number'?"),
        ("judge: {rubrik: x}", "did you mean 'judge.rubric'?"),
        ("hub: {a.jsonl: {pth: x, path: y, split: z}}", "did you mean 'hub.a.jsonl.path'?"),
        ("few_shots: {number: 1}", "did you mean 'few_shot'?"),
    ],
)
def test_a_wrong_key_is_answered_with_one_of_its_own_level(
    key: str, remedy: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f'name: t\nfiles: [a]\nprompt: "-"\nanswers: a\n{key}\n', "utf-8")
    (problem,) = read_task(path).wrong
    assert problem.where.startswith(f"{path}:5: ")
    assert problem.remedy == remedy


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("extract: {take: middle, pattern: '('}", [":4: extract.take", ":4: extract.pattern"]),
        (
            "kind: choise\nstop: ['']\nanswers: 'a +'\nextract: {pattern: '('}",
            [":4: kind", ":5: stop", ":6: answers", ":7: extract.pattern"],
        ),
        ("judge: {lowest: x, highest: 1}", [":4: judge.lowest"]),
        ("judge: {lowest: 5, highest: 3}\nscores: 3", [":4: judge.highest", ":5: scores"]),
        ("few_shot: {number: -1, filse: [a]}", [":4: few_shot.number", ":4: few_shot.filse"]),
        ("scores: 3\nprogram: '{{ answer }}'", [":4: scores"]),
    ],
)
def test_a_wrong_field_hides_no_other(text: str, places: list[str], tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f'name: t\nfiles: [a]\nprompt: "-"\n{text}\n', "utf-8")
    found = [problem.where.removeprefix(str(path)) for problem in read_task(path).wrong]
    assert sorted(found) == sorted(places)


def test_the_files_of_a_task_of_no_kind_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text('name: t\nkind: x\nfiles: [none.jsonl]\nprompt: "-"\n', "utf-8")
    with pytest.raises(DataError, match=r"(?s)t\.yaml:2: kind: .*t\.yaml:3: files: its data file"):
        load_tasks(EvaluateConfig(tasks=[str(path)]))


TASK = """name: t
kind: choice
files: [rows.jsonl]
few_shot: {number: 1}
prompt: "{{ question }}"
choices: options
shot: "{{ shown }}"
label: "labels[5]"
"""


def test_what_fails_on_every_row_is_told_at_its_line_and_else_at_the_row(tmp_path: Path) -> None:
    path, rows = tmp_path / "task.yaml", tmp_path / "rows.jsonl"
    path.write_text(TASK, "utf-8")
    right = '{"question": "q", "choices": ["a", "b"], "labels": [0]}\n'
    rows.write_text(f'{right}{{"choices": ["a", "b"], "labels": [0]}}\n{right}', "utf-8")
    with pytest.raises(DataError) as caught:
        load_tasks(EvaluateConfig(tasks=[str(path)]))
    told = {each.where: each for each in caught.value.problems}
    assert list(told) == [
        f"{rows}:2",
        *(f"{path}:6: choices", f"{path}:7: shot", f"{path}:8: label"),
    ]
    row = told[f"{rows}:2"]
    assert row.what.startswith("task t: prompt: 'question' is undefined")
    assert row.remedy == f"mend the row, or {path}:5: prompt"
    assert told[f"{path}:6: choices"].what.endswith("(rows.jsonl:3, and so in 2 more rows)")
    assert told[f"{path}:7: shot"].what.endswith("(rows.jsonl:3)")


def test_a_section_that_is_none_names_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text('files: [a]\nprompt: "-"\nextract: 3\n', "utf-8")
    assert [f"{each.where[len(str(path)) :]} {each.what}" for each in read_task(path).wrong] == [
        ":1: name is missing",
        ":3: extract 3 is not allowed: expected {pattern, take}",
    ]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print(1)", "task.yaml:4: program: does not use `answer`"),
        ("{{ answer | length }}", "task.yaml:4: program: expected {{ answer }} in it"),
    ],
)
def test_a_program_that_scores_no_answer_is_refused(
    program: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "x"}\n', "utf-8")
    path = tmp_path / "task.yaml"
    text = f'name: t\nfiles: [rows.jsonl]\nprompt: "-"\nprogram: "{program}"\nanswers: ""\n'
    path.write_text(text + "scores: [pass_at_1]\n", "utf-8")
    with pytest.raises(DataError, match=re.escape(told)):
        load_tasks(EvaluateConfig(tasks=[str(path)]))
