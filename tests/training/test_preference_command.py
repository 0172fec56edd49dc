"""The launched command on rows as the server's page exports them, and Python's trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from aift_ray import JapaneseModel, LoRAConfig, PreferenceTrainer, TrainingConfig
from aift_ray.errors import ConfigError
from tests.conftest import KEITAI, ROOT
from tests.helpers.preference_rows import pairs, write

TRAIN = [sys.executable, "-m", "aift_ray.train"]


def train(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [*TRAIN, "--output-dir", str(folder / "run"), *flags]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_trains_the_rows_that_the_page_exports(
    tmp_path: Path, tiny_model: Path
) -> None:
    exported = [row | {"chosen_model": "a", "rejected_model": "b"} for row in pairs(8)]
    rows, held_out = write(tmp_path / "rows.jsonl", exported), write(tmp_path / "e.jsonl", pairs(3))
    flags = ["--model", str(tiny_model), "--objective", "dpo", "--train-file", str(rows)]
    flags += ["--eval-file", str(held_out), "--max-steps", "3", "--training.logging_steps", "1"]
    done = train(tmp_path, *flags, "--training.learning_rate", "1e-2")
    assert done.returncode == 0, done.stderr
    assert "dpo, beta 0.1, against the model as the run begins" in done.stdout
    folder = tmp_path / "run"
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert steps[-1]["rewards/margins"] > 0
    assert lines[0]["eval_rewards/accuracies"] == 0.5
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert (summary["eval_accuracy_before"], summary["objective"]) == (0.5, "dpo")
    assert summary["eval_accuracy"] == lines[-1]["eval_rewards/accuracies"] > 0.5
    assert "| objective | dpo |" in (folder / "model" / "README.md").read_text("utf-8")
    assert (folder / "loss.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_is_wrong_ends_with_status_2_and_a_preview_shows_both_answers(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", [*pairs(2), {"prompt": "a", "chosen": "b"}])
    model = ["--model", str(tiny_model), "--train-file", str(rows)]
    for objective, said in (
        ("dpo", "rows.jsonl:3: the key rejected is missing"),
        ("kto", "rows.jsonl:1: chosen and rejected are a pair"),
        ("sft", "give --objective dpo"),
    ):
        found = train(tmp_path, *model, "--objective", objective)
        assert (found.returncode, said in " ".join(found.stderr.split())) == (2, True), found.stderr
    write(rows, pairs(2))
    shown = train(tmp_path, *model, "--objective", "dpo", "--dry-run").stdout
    assert "rows.jsonl:1, chosen" in shown
    assert "⟦花だよ。" in shown


def test_python_trains_pairs_that_it_is_given(tmp_path: Path) -> None:
    lines = (KEITAI / "preferences.jsonl").read_text("utf-8").splitlines()[:8]
    model = JapaneseModel("hina-4m")
    trainer = PreferenceTrainer(
        model,
        LoRAConfig(r=4),
        TrainingConfig(output_dir=str(tmp_path / "out"), batch_size=4, max_steps=2),
        preference={"beta": 0.3},
        data={"cache_dir": str(tmp_path / "cache")},
    )
    trained = trainer.train([json.loads(line) for line in lines])
    assert isinstance(trained, PeftModel)
    assert model.generate_japanese("挨拶", max_new_tokens=2, do_sample=False) is not None
    config = (tmp_path / "out" / "config.yaml").read_text("utf-8")
    assert "objective: dpo" in config
    assert "beta: 0.3" in config


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "beta": ({"preference": {"beta": -1}}, "preference.beta"),
    "an objective": ({"objective": "ppo"}, "objective"),
    "no section": ({"preference": 5}, "trainer: preference"),
    "a beta without end": ({"objective": "ipo", "preference": {"beta": 1e-30}}, "preference.beta"),
    "an objective of another trainer": ({"objective": "sft"}, "objective"),
    "a reward model by workers": (
        {"objective": "reward", "ray": {"num_workers": 2}},
        "objective",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_python_refuses_by_name(case: str) -> None:
    more, field = WRONG[case]
    trainer = PreferenceTrainer(JapaneseModel("hina-4m"), None, TrainingConfig(), **more)
    with pytest.raises(ConfigError) as caught:
        trainer.train(pairs(2))
    assert field in [problem.where for problem in caught.value.problems]
