"""Rows of built-in tasks, scored here and by lm-evaluation-harness in its own environment.

    make test-harness

AIFT_HARNESS_MODELS: further model folders, such as gemma3-270m, with `:` between them.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aift_ray import evaluate
from aift_ray.config import EvaluateConfig
from aift_ray.tasks.items import Item
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHARED, SHIPPED
from tests.helpers.tasks import load_tasks

DATA = SHARED / "data" / "eval"
ROWS = int(os.environ.get("AIFT_HARNESS_ROWS", "12"))
MODELS = [str(SHIPPED), *filter(None, os.environ.get("AIFT_HARNESS_MODELS", "").split(":"))]
pytestmark = [
    pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed"),
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data"),
]


def samples(model: str, task: str, folder: Path) -> list[dict[str, Any]]:
    """What the command keeps of each row."""
    argv = ["--model", model, "--task", task, "--data-dir", str(DATA), "--limit", str(ROWS)]
    argv += ["--dtype", "fp32", "--output", str(folder / "results.json")]
    assert guarded(evaluate.run, argv) == 0
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda each: int(each["row"]))


def items(task: str) -> tuple[Any, list[Item]]:
    config = EvaluateConfig(tasks=[task], data_dir=str(DATA), limit=ROWS)
    (loaded,) = load_tasks(config)
    return loaded.task, loaded.items


@pytest.fixture(scope="module", params=MODELS)
def harness(request: pytest.FixtureRequest) -> tuple[str, Any]:
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM(pretrained=request.param, dtype="float32", device="cpu", batch_size=4)
    return request.param, model


@pytest.mark.parametrize("name", ["jcommonsenseqa", "jnli", "jmmlu"])
def test_choices_are_the_harnesss(name: str, harness: tuple[str, Any], tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    model, language_model = harness
    task, rows = items(name)
    requests = [
        Instance("loglikelihood", {}, (str(item.prompt), task.delimiter + choice), at)
        for item in rows
        for at, choice in enumerate(item.choices)
    ]
    wanted = iter(language_model.loglikelihood(requests))
    for item, sample in zip(rows, samples(model, name, tmp_path), strict=True):
        sums = [next(wanted)[0] for _ in item.choices]
        assert sample["log_likelihoods"] == pytest.approx(sums, abs=2e-3)
        right = float(max(range(len(sums)), key=lambda at: sums[at]) == item.label)
        assert sample["scores"]["accuracy"] == [right, 1.0]


@pytest.mark.parametrize("name", ["mgsm_ja", "niilc"])
def test_answers_are_the_harnesss(name: str, harness: tuple[str, Any], tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    model, language_model = harness
    task, rows = items(name)
    options = {"until": task.stop, "max_gen_toks": task.max_tokens, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (str(item.prompt), options), at)
        for at, item in enumerate(rows)
    ]
    wanted = language_model.generate_until(requests)
    found = [sample["written"] for sample in samples(model, name, tmp_path)]
    assert found == wanted
