"""The same scores from a launched server as from the model's folder, and from several workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aift_ray import evaluate
from aift_ray.utils.exit_status import guarded
from tests.conftest import write_rows
from tests.helpers.served import Served

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TASK = """
name: colours
kind: choice
files: [colours.jsonl]
few_shot: {number: 2}
prompt: "{{ question }}\\n答え："
choices: [赤, とても青い, 緑色]
scores: [accuracy, accuracy_per_token]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served"))
    yield server
    server.stop()


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    rows = [{"question": f"{at}番目の花は何色？", "label": at % 3} for at in range(14)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "colours.jsonl").write_text(lines, "utf-8")
    (tmp_path / "colours.yaml").write_text(TASK, "utf-8")
    rows_file = write_rows(tmp_path / "rows.jsonl", 6)
    return ["--task", str(tmp_path / "colours.yaml"), "--task", str(rows_file)]


def samples(folder: Path, *argv: str) -> list[dict[str, object]]:
    assert guarded(evaluate.run, [*argv, "--output", str(folder / "results.json")]) == 0
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_server_gives_the_scores_of_its_folder(
    served: Served, tasks: list[str], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(served.key, "utf-8")
    here = samples(tmp_path / "here", *tasks)
    address = f"http://127.0.0.1:{served.port}/v1"
    flags = ["--base-url", address, "--model", "hina-4m", "--api-key-file", str(tmp_path / "key")]
    there = samples(tmp_path / "there", *tasks, *flags)
    assert [s["scores"] for s in there] == [s["scores"] for s in here]
    assert [s.get("written") for s in there] == [s.get("written") for s in here]
    for one, other in zip(here, there, strict=True):
        if "log_likelihoods" in one:
            assert other["log_likelihoods"] == pytest.approx(one["log_likelihoods"], abs=1e-3)


def test_two_workers_give_the_scores_of_one(tasks: list[str], tmp_path: Path) -> None:
    one = samples(tmp_path / "one", *tasks)
    two = samples(tmp_path / "two", *tasks, "--num-workers", "2")
    assert [s["scores"] for s in two] == [s["scores"] for s in one]
    assert [s.get("written") for s in two] == [s.get("written") for s in one]
