"""A sweep that optimizes the score of a task, started by the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.command import Cluster, Command, flags, summary_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_best_trial_is_that_of_the_best_score(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"はい、{at}番目は「花鳥」です。"}) + "\n" for at in range(4))
    )
    (tmp_path / "sweep.yaml").write_text(
        "training: {learning_rate: {grid: [1.0e-7, 1.0e-2]}}\n"
        "tune: {search: grid, metric: texts/bits_per_character, max_concurrent: 1}\n"
        f"evaluation: {{tasks: [{tmp_path / 'texts.jsonl'}], steps: 4}}\n",
        "utf-8",
    )
    argv = flags(tiny_model, rows_file, folder, **{"num-workers": 1, "max-steps": 12})
    at = argv.index("--training.learning_rate")
    argv = [*argv[:at], *argv[at + 2 :], "--config", str(tmp_path / "sweep.yaml")]
    status, output = Command(argv, cluster.environment, "tune").done()
    assert status == 0, output
    assert "texts/bits_per_character, min" in output
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["texts/bits_per_character"]) for row in rows]
    # the first learns nothing, and may be stopped for that
    assert [row["status"] for row in rows][1] == "done"
    kept = summary_of(folder / "trials" / "1")["tasks"]["texts"]
    assert scores[1] == kept["bits_per_character"]["value"]
    assert scores[1] < scores[0]
    best = (folder / "best.yaml").read_text("utf-8")
    assert best.startswith("# trial 1: texts/bits_per_character")
