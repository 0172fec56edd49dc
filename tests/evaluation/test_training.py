"""Tasks scored while training: the launched command says what `evaluate` says of its models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aift_ray import evaluate
from aift_ray.commandline import validated
from aift_ray.errors import ConfigError, UserError
from aift_ray.launch import early_checks
from aift_ray.sweep import metric as sweep_metric
from aift_ray.sweep.space import separate
from aift_ray.utils.exit_status import guarded
from tests.conftest import ROOT, write_rows

_CHOICE = """
name: colours
kind: choice
files: [colours.jsonl]
few_shot: {number: 1}
prompt: "{{ question }}\\n答え："
choices: [赤, とても青い, 緑色]
scores: [accuracy, accuracy_per_token, accuracy_normalized]
"""
_WRITTEN = """
name: written
files: [rows.jsonl]
prompt: "{{ instruction }}"
answers: output
chat: true
max_tokens: 12
stop: ["。"]
scores: [character_f1, exact_match]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Files of a task of each kind."""
    rows = [{"question": f"{at}番目の花は何色？", "label": at % 3} for at in range(7)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "colours.jsonl").write_text(lines, "utf-8")
    (tmp_path / "colours.yaml").write_text(_CHOICE, "utf-8")
    write_rows(tmp_path / "rows.jsonl", 3)
    (tmp_path / "written.yaml").write_text(_WRITTEN, "utf-8")
    texts = "".join(json.dumps({"text": f"{at}番目の花は赤い。"}) + "\n" for at in range(3))
    (tmp_path / "texts.jsonl").write_text(texts, "utf-8")
    return [str(tmp_path / name) for name in ("colours.yaml", "written.yaml", "texts.jsonl")]


def evaluated(folder: Path, tasks: list[str], *models: Path) -> dict[str, Any]:
    argv = [part for task in tasks for part in ("--task", task)]
    argv += [part for model in models for part in ("--model", str(model))]
    assert guarded(evaluate.run, [*argv, "--output", str(folder / "results.json")]) == 0
    return json.loads((folder / "results.json").read_text("utf-8"))["scores"]


def test_before_and_after_are_the_scores_of_evaluate(
    tiny_model: Path, rows_file: Path, tasks: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = ["--model", str(tiny_model), "--train-file", str(rows_file), "--max-steps", "4"]
    flags += ["--output-dir", str(output), "--training.learning_rate", "0.02"]
    flags += ["--evaluation.steps", "2", "--evaluation.batch_size", "3"]
    flags += [part for task in tasks for part in ("--evaluation.tasks", task)]
    command = [sys.executable, "-m", "aift_ray", "train", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((output / "summary.json").read_text("utf-8"))
    scores = evaluated(tmp_path / "scores", tasks, tiny_model, output / "model")
    compared = 0
    for task, by_model in scores.items():
        names = list(by_model)
        for when, name in (("tasks_before", names[0]), ("tasks", names[1])):
            for score, value in summary[when][task].items():
                compared += 1
                expected = by_model[name][score]["value"]
                assert value["value"] == pytest.approx(expected, rel=1e-4), (task, when, score)
    # not what sums of nothing would give
    assert summary["tasks"]["texts"]["bits_per_character"]["value"] > 1
    # three scores of choices, two of answers, two of texts
    assert compared == 2 * 7
    assert summary["tasks"] != summary["tasks_before"]
    lines = [json.loads(x) for x in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line["step"] for line in lines if "colours/accuracy" in line]
    assert steps == [0, 2, 4]
    assert "| colours | accuracy |" in (output / "model" / "README.md").read_text("utf-8")
    assert "colours/accuracy" in done.stdout
    # the run's token cache: of rows.jsonl, 3 rows are the first 3 that were trained on
    flags = ["--task", str(tmp_path / "rows.jsonl"), "--training-data", str(output)]
    flags += ["--model", str(tiny_model), "--output", str(tmp_path / "overlap" / "results.json")]
    assert guarded(evaluate.run, [*flags, "--task", tasks[2]]) == 0
    found = json.loads((tmp_path / "overlap" / "results.json").read_text("utf-8"))
    told = {"characters": 20, "compared": 3, "seen": 3, "too_short": 0}
    assert found["contamination"]["rows"] == told
    # too short to be told
    short = found["contamination"]["texts"]
    assert (short["compared"], short["seen"]) == (0, 0)
    assert short["too_short"] > 0


def test_wrong_tasks_are_refused_with_the_rest(rows_file: Path, tmp_path: Path) -> None:
    values = {
        "data": {"train_files": [str(rows_file), str(tmp_path / "absent.jsonl")]},
        "evaluation": {"tasks": ["jnly"]},
    }
    with pytest.raises(UserError) as refused:
        early_checks.check_run(validated(values))
    assert "did you mean jnli?" in str(refused.value)
    assert "absent.jsonl" in str(refused.value)
    with pytest.raises(ConfigError, match=r"evaluation\.limit: acts with evaluation\.tasks only"):
        validated({"evaluation": {"limit": 3}})


@pytest.mark.parametrize(
    ("metric", "evaluation", "said"),
    [
        ("accuracy", {"tasks": ["jnli"]}, "or TASK/SCORE"),
        ("jnli/accuracy", {}, "none is given"),
        ("jnli/accuracy", {"tasks": ["jnli"]}, "nothing to compare by"),
    ],
)
def test_a_sweep_needs_the_score_it_compares_by(
    rows_file: Path, metric: str, evaluation: dict[str, Any], said: str
) -> None:
    values = {
        "data": {"train_files": [str(rows_file)]},
        "tune": {"metric": metric},
        "evaluation": evaluation,
        "training": {"learning_rate": {"choice": [1e-3, 1e-2]}},
    }
    with pytest.raises(ConfigError, match=said):
        separate(yaml.safe_load(yaml.safe_dump(values)), [])


def test_a_reward_model_has_no_scores_on_tasks() -> None:
    with pytest.raises(ConfigError, match="objective reward trains a reward model"):
        validated({"objective": "reward", "evaluation": {"tasks": ["jnli"]}})


def test_which_score_is_better() -> None:
    from aift_ray.config import TuneConfig

    assert TuneConfig(metric="texts/bits_per_character").better == "min"
    assert TuneConfig(metric="colours/accuracy").better == "max"
    assert TuneConfig(metric="eval_loss").better == "min"


def test_a_score_that_no_task_computes_is_named(
    configure: Any, tasks: list[str], tmp_path: Path
) -> None:
    from aift_ray.config import TuneConfig
    from aift_ray.runs.prepare import prepare

    prepared = prepare(configure(evaluation={"tasks": tasks}), tmp_path / "run", 1, False, None)
    sweep_metric.check(TuneConfig(metric="colours/accuracy"), [prepared])
    with pytest.raises(ConfigError, match="one of colours/accuracy, colours/accuracy_per_token"):
        sweep_metric.check(TuneConfig(metric="colours/f1"), [prepared])
