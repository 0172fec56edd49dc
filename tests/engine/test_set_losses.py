"""Runs on several sets: equal to plain ones where they must be, and told apart in the metrics."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.data import token_cache
from aift_ray.errors import ConfigError, DataError
from aift_ray.runs import terminal
from aift_ray.runs.prepare import prepare
from tests.conftest import write_rows
from tests.helpers.runs import started, stepped, whole_on_workers
from tests.helpers.whole_runs import Killed, losses, run

Configure = Callable[..., Any]


@pytest.fixture
def sets(tmp_path: Path) -> list[dict[str, Any]]:
    """Chat rows and raw text."""
    chat = write_rows(tmp_path / "chat.jsonl", 20, 200)
    poem = tmp_path / "poem.txt"
    poem.write_text(
        "古池や蛙飛びこむ水の音\n夏草や兵どもが夢の跡\n閑さや岩にしみ入る蝉の声\n", "utf-8"
    )
    return [
        {"files": [str(chat)], "weight": 2, "name": "chat"},
        {"files": [str(poem)], "weight": 1, "name": "poems"},
    ]


def lines(folder: Path) -> list[dict[str, Any]]:
    texts = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(text) for text in texts]
    return [{k: v for k, v in x.items() if k not in ("time", "tokens_per_second")} for x in found]


@pytest.mark.parametrize("packing", ["concat", "fill"])
def test_a_mixture_of_one_is_the_run_without_bit_for_bit(
    configure: Configure, rows_file: Path, tmp_path: Path, packing: str
) -> None:
    how = {"data__packing": packing, "training__num_epochs": 2, "data__validation_fraction": 0.2}
    run(configure(**how), tmp_path / "plain")
    one = [{"files": [str(rows_file)], "weight": 0.3}]
    run(configure(**how, data__train_files=[], data__mixture=one), tmp_path / "one")
    assert lines(tmp_path / "one") == lines(tmp_path / "plain")
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("plain", "one")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("packing", ["concat", "fill"])
def test_a_mixture_that_is_resumed_is_the_one_that_was_not_stopped(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path, packing: str
) -> None:
    how = {"data__train_files": [], "data__mixture": sets, "data__packing": packing}
    how |= {"training__num_epochs": 3, "training__batch_size": 4, "training__save_steps": 1}
    config = configure(**how)
    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "stopped", kill_at=2)
    run(config, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_the_loss_of_each_set_is_in_the_metrics_and_changes_nothing(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path
) -> None:
    mixed = started(configure(data__train_files=[], data__mixture=sets), tmp_path / "a")
    plain = started(configure(data__train_files=[], data__mixture=sets), tmp_path / "b")
    plain.set_of = None
    found, without = stepped(mixed, 3), stepped(plain, 3)
    for step, (line, other) in enumerate(zip(found, without, strict=True)):
        assert (line["loss"], line["grad_norm"]) == (other["loss"], other["grad_norm"])
        assert "loss_by_set" not in other
        by_set, targets = line["loss_by_set"], mixed.plan.set_weights(step)
        assert set(by_set) == {"chat", "poems"}
        pairs = zip(by_set.values(), targets, strict=True)
        total = sum((value or 0.0) * number for value, number in pairs)
        assert math.isclose(total / sum(targets), line["loss"], rel_tol=1e-6)
    # the first step's losses are those of a run on the rows of that set alone
    batch = mixed.plan.global_units(0)
    assert mixed.plan.sets is not None
    kinds = {int(mixed.plan.sets[unit[0]]) for unit in batch}
    assert kinds == {0, 1}


@pytest.mark.slow
def test_two_workers_write_the_same_losses_of_sets(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path
) -> None:
    how = {"data__train_files": [], "data__mixture": sets, "training__max_steps": 3}
    ways: dict[str, dict[str, Any]] = {
        "ddp": {},
        "fsdp": {"parallel__strategy": "fsdp"},
        "tensor": {"parallel__strategy": "tensor", "parallel__tensor_parallel_size": 2},
        "pipeline": {"parallel__strategy": "pipeline", "parallel__pipeline_parallel_size": 2},
    }
    half = {"training__batch_size": 4, "training__gradient_accumulation_steps": 2}
    run(configure(**how), tmp_path / "alone")
    configs = {}
    for name, more in ways.items():
        # the same global batch
        more = more | ({"training__batch_size": 4} if name in ("ddp", "fsdp") else half)
        configs[name] = configure(**how, **more)
    whole_on_workers(configs, tmp_path)
    wanted = [line["loss_by_set"] for line in lines(tmp_path / "alone")]
    assert len(wanted) == 3
    for name in ways:
        found = [line["loss_by_set"] for line in lines(tmp_path / name)]
        assert found == [pytest.approx(each, rel=1e-4) for each in wanted], name


def test_the_plan_says_what_an_epoch_is_made_of(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = configure(data__train_files=[], data__mixture=sets)
    prepared = prepare(config, tmp_path / "run", 1, False, None)
    chat, poems = terminal._mixture(prepared)
    # 23 examples an epoch, 15 and 8 of them
    assert chat.startswith("chat: 20 rows x 0.75 an epoch, 65.2% of the examples")
    assert poems.startswith("poems: 3 rows x 2.67 an epoch, 34.8% of the examples")
    assert sum(each.rows for each in prepared.prepared.sets) == prepared.prepared.train.rows


def test_another_mixture_is_refused_on_resume(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path
) -> None:
    how = {"data__train_files": [], "training__save_steps": 1}
    run(configure(**how, data__mixture=sets), tmp_path / "run")
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    other = [sets[0] | {"weight": 3}, sets[1]]
    with pytest.raises(ConfigError) as error:
        prepare(configure(**how, data__mixture=other), tmp_path / "other", 1, False, last)
    assert [problem.where for problem in error.value.problems] == ["data.mixture"]
    typed = error.value.problems[0].remedy.partition("--data.mixture ")[2].partition(", or ")[0]
    assert json.loads(shlex.split(typed)[0]) == [
        each | {"weight": w} for each, w in zip(sets, (2.0, 1.0), strict=True)
    ]
    same = prepare(configure(**how, data__mixture=sets), tmp_path / "other", 1, False, last)
    assert same.job.changed == []


def test_a_file_in_two_sets_and_a_set_without_rows_are_refused(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path
) -> None:
    twice = [sets[0], {"files": sets[0]["files"], "weight": 1, "name": "again"}]
    with pytest.raises(ConfigError, match="is in two sets"):
        prepare(configure(data__train_files=[], data__mixture=twice), tmp_path, 1, False, None)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": ""}\n', "utf-8")
    mixture = [sets[0], {"files": [str(bad)], "weight": 1}]
    how = {"data__train_files": [], "data__on_bad_row": "skip", "data__mixture": mixture}
    with pytest.raises(DataError, match=r"no row of the set bad[.]jsonl"):
        prepare(configure(**how), tmp_path, 1, False, None)


def test_other_weights_use_the_same_token_cache(
    configure: Configure, sets: list[dict[str, Any]], tmp_path: Path
) -> None:
    folders = set()
    for weight in (1, 5):
        mixture = [sets[0] | {"weight": weight}, sets[1]]
        config = configure(data__train_files=[], data__mixture=mixture)
        prepared = prepare(config, tmp_path / "run", 1, False, None)
        folders.add(prepared.job.cache)
        assert token_cache.load(prepared.job.cache).set_of() is not None
    assert len(folders) == 1
