"""The report of a run in a browser: completions of each prompt by evaluation, and curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aift_ray.engine.grpo import rollout_report
from tests.helpers.page_visitor import opened_file

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"


def written(folder: Path) -> Path:
    """A report of three evaluations of two prompts."""
    steps = (0, 2, 4)
    samples = [
        {
            "step": step,
            "prompt": [{"role": "user", "content": f"質問{row} {HOSTILE}"}],
            "completion": f"答え{row}の{step} {HOSTILE}",
            "reward": None if row and not step else row - step / 4,
            "rewards": {"short": 0.5, "polite": None},
        }
        for step in steps
        for row in (0, 1)
    ]
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": 0.0, "reward": step / 4, "entropy": 2.0, "kl": None}
        for step in (1, 2, 3, 4)
    ]
    lines += [{"step": step, "eval_reward": step / 5} for step in steps]
    for name, rows in (("samples", samples), ("metrics", lines)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    rollout_report.write(folder)
    return folder / "report.html"


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b" * 9000, "reward": 1.0, "rewards": {}}
    text = "".join(json.dumps({"step": step, **row}) + "\n" for step in range(200))
    (tmp_path / "samples.jsonl").write_text(text, "utf-8")
    (tmp_path / "metrics.jsonl").write_text("", "utf-8")
    rollout_report.write(tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    content = json.loads(page.partition('id="content">')[2].partition("</script>")[0])
    [prompt] = content["prompts"]
    assert [made["step"] for made in prompt["completions"]][:: len(prompt["completions"]) - 1] == [
        0,
        199,
    ]
    assert len(prompt["completions"]) == 20
    assert len(page) < 70_000


def test_nothing_is_written_without_evaluations(tmp_path: Path) -> None:
    rollout_report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report, opened from its file in a Japanese browser."""
    with opened_file(written(tmp_path_factory.mktemp("report"))) as opened:
        yield opened


def test_completions_of_a_prompt_are_shown_by_evaluation(page: Any) -> None:
    assert page.locator("details").count() == 2
    first = page.locator("details").first
    assert "0 → -1" in first.inner_text()
    first.locator("summary").click()
    text = first.inner_text()
    assert text.index("答え0の0") < text.index("答え0の2") < text.index("答え0の4")
    assert HOSTILE in text
    assert page.title() == "学習レポート"
    assert page.locator("main img").count() == 0
    assert len(page.asked) == 1


def test_prompts_are_searched_and_ordered(page: Any) -> None:
    page.locator("select").select_option("low")
    assert "質問0" in page.locator("summary").first.inner_text()
    page.locator("select").select_option("gained")
    assert "質問1" in page.locator("summary").first.inner_text(), "one without reward has no change"
    page.locator("input[type=search]").fill("答え1の2")
    assert page.locator("details").count() == 1
    page.locator("input[type=search]").fill("")


def test_curves_and_both_languages(page: Any) -> None:
    # no KL was measured
    assert page.locator("svg").count() == 2
    assert "評価: 0 → 0.8" in page.inner_text("main")
    page.locator("#language").click()
    assert page.title() == "Training report"
    assert "evaluation: 0 → 0.8" in page.inner_text("main")
    page.locator("#language").click()
