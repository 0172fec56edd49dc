"""The report in a browser: nothing of a model's answer runs, and rows can be found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aift_ray.config import EvaluateConfig
from aift_ray.evaluation import evaluation_results, html_report
from aift_ray.tasks.task import Task
from tests.helpers.page_visitor import opened_file

HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report of two models on five rows, opened from its file in a Japanese browser."""
    texts = Task(name="texts", kind="text")
    task = Task(name="t", prompt="{{ q }}", scores=["exact_match"])
    samples = {
        (model, "t"): {
            row: {
                "place": f"rows.jsonl:{row + 1}",
                "prompt": f"質問{row} {HOSTILE}",
                "answers": ["はい"],
                "written": f"{model} {HOSTILE}",
                "finish": "stop",
                "scores": {"exact_match": [float(model == "tuned" and row == 1), 1.0]},
            }
            for row in range(3)
        }
        for model in ("base", "tuned")
    }
    samples |= {
        (model, "texts"): {
            row: {
                "place": f"texts.jsonl:{row + 1}",
                "prompt": "",
                "text": f"春はあけぼの{row}。{HOSTILE}" + "長い文。" * 40,
                "scores": {"bits_per_character": [300.0, 60.0], "perplexity": [200.0, 40.0]},
            }
            for row in range(2)
        }
        for model in ("base", "tuned")
    }
    config = EvaluateConfig(tasks=["t"], resamples=200)
    found = evaluation_results.results(
        config, ["base", "tuned"], [task, texts], samples, ["注意書き"]
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html_report.html(found, samples), "utf-8")
    with opened_file(path) as opened:
        yield opened


def test_nothing_of_an_answer_runs_and_nothing_is_loaded(page: Any) -> None:
    page.locator("summary").first.click()
    assert page.title() == "評価レポート"
    assert HOSTILE in page.locator("details").first.inner_text()
    assert page.locator("main img").count() == 0
    assert len(page.asked) == 1


def test_rows_are_filtered_and_searched(page: Any) -> None:
    # the row on which the models differ comes first
    assert "rows.jsonl:2" in page.locator("summary").first.inner_text()
    section = page.locator("section").first
    section.locator("select").select_option("gained")
    assert section.locator("details").count() == 1
    section.locator("select").select_option("wrong")
    assert section.locator("details").count() == 2
    section.locator("select").select_option("all")
    section.locator("input[type=search]").fill("質問2")
    assert section.locator("details").count() == 1
    section.locator("input[type=search]").fill("")


def test_texts_show_their_beginning(page: Any) -> None:
    section = page.locator("section").last
    section.locator("input[type=search]").fill("あけぼの1")
    assert section.locator("details").count() == 1
    summary = section.locator("summary").inner_text()
    assert "春はあけぼの1。</script>" in summary
    assert summary.endswith("…")
    section.locator("summary").click()
    # an open row is filled by an event, after the click
    section.get_by_text("本文の先頭").wait_for(timeout=8000)
    assert section.locator("details").inner_text().endswith("長い文。")
    section.locator("input[type=search]").fill("")


def test_both_languages(page: Any) -> None:
    assert "明確な差はありません" in page.inner_text("main")
    page.locator("#language").click()
    assert page.title() == "Evaluation report"
    assert "no clear difference" in page.inner_text("main")
    page.locator("#language").click()


def test_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    for _ in ("ja", "en"):
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#language").click()
    page.set_viewport_size({"width": 1280, "height": 800})


def test_a_change_of_the_width_redraws_the_bars_alone(page: Any) -> None:
    section = page.locator("section").first
    section.locator("input[type=search]").fill("質問2")
    section.locator("summary").click()
    wide = page.locator("svg[role=img]").first.get_attribute("viewBox")
    page.set_viewport_size({"width": 700, "height": 800})
    page.wait_for_function(
        "wide => document.querySelector('svg[role=img]').getAttribute('viewBox') !== wide", arg=wide
    )
    assert section.locator("details[open]").count() == 1
    assert section.locator("input[type=search]").input_value() == "質問2"
    section.locator("input[type=search]").fill("")
    page.set_viewport_size({"width": 1280, "height": 800})
