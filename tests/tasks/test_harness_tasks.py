"""Tasks of lm-evaluation-harness through the harness itself."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from aift_ray import evaluate
from aift_ray.utils.exit_status import guarded


@pytest.mark.skipif(bool(find_spec("lm_eval")), reason="lm-eval is installed")
def test_without_the_harness_its_tasks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(evaluate.run, ["--task", "lm_eval:arc_easy", "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "task lm_eval:arc_easy: needs lm-evaluation-harness" in message
    assert 'pip install "aift-ray[lm-eval]"' in message


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task of the harness with rows of its own."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = [{"q": f"{at}番目の花は何色？", "a": at % 3} for at in range(9)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, "utf-8")
    path = tmp_path / "flowers.yaml"
    path.write_text(
        f"""task: flowers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{{{q}}}}\\n答え："
doc_to_target: a
doc_to_choice: [赤, とても青い, 緑色]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
        "utf-8",
    )
    return str(path)


def test_the_scores_are_the_harnesss(task: str, tiny_model: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    output = tmp_path / "out" / "results.json"
    argv = ["--model", str(tiny_model), "--task", f"lm_eval:{task}", "--output", str(output)]
    assert guarded(evaluate.run, argv) == 0
    found = json.loads(output.read_text("utf-8"))
    about = f"pretrained={tiny_model},dtype=float32"
    expected = simple_evaluate("hf", about, [task], device="cpu", batch_size=1, bootstrap_iters=0)
    own = expected["results"]["flowers"]["acc,none"]
    assert found["scores"]["flowers"][tiny_model.name]["acc"]["value"] == own
    lines = (output.parent / "samples.jsonl").read_text("utf-8").splitlines()
    rows = {each["doc_id"]: each["acc"] for each in expected["samples"]["flowers"]}
    assert {s["row"]: s["scores"]["acc"][0] for s in map(json.loads, lines)} == rows
    assert (output.parent / "report.html").is_file()


def test_unknown_tasks_are_named(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(evaluate.run, ["--task", "lm_eval:arc_eesy", "--dry-run"]) == 2
    assert "did you mean lm_eval:arc_easy?" in capsys.readouterr().err
    argv = ["--task", f"lm_eval:{task}", "--base-url", "http://127.0.0.1:9/v1", "--model", "m"]
    assert guarded(evaluate.run, [*argv, "--dry-run"]) == 2
    assert "give model folders in place of --base-url" in capsys.readouterr().err
