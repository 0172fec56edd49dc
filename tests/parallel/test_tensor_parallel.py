"""Matrices split over workers: families of models, dropout, copies of a split model, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.commandline import validated
from aift_ray.errors import ConfigError
from aift_ray.parallel.tensor_parallel import FAMILIES
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_model, write_rows

Configure = Callable[..., Any]
CASE = ("tensor", "full", "fp32", "concat")


def test_each_family_and_setting_trains_what_one_process_trains(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    # llama itself is among the strategies' cases
    models = {k: make_tiny_model(tmp_path / k, k) for k in FAMILIES if k != "llama"}
    split = {kind: parity.settings(CASE, 2, folder, rows) for kind, folder in models.items()}
    whole = {k: parity.settings(("ddp", *CASE[1:]), 1, m, rows) for k, m in models.items()}
    folder = make_tiny_model(tmp_path / "tiny")
    # whose rows hold whole blocks of 4 bits
    wide = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
    others = {
        "dropout": ("lora", folder),
        "scaled tensor": ("lora", folder),
        "scaled fsdp": ("lora", folder),
        "scaled ddp": ("full", folder),
        "qlora nf4": ("qlora nf4", make_tiny_model(tmp_path / "wide", **wide)),
    }
    for name, (method, model) in others.items():
        case = (method, *CASE[2:])
        strategy = name.removeprefix("scaled ") if "scaled" in name else "tensor"
        split[name] = parity.settings((strategy, *case), 2, model, rows)
        whole[name] = parity.settings(("ddp", *case), 1, model, rows)
    for config in (split["dropout"], whole["dropout"]):
        config.lora.lora_dropout = 0.3
    for config in (*split.values(), *whole.values()):
        config.training.max_steps = 3
    curves, weights = parity.spread(split, tmp_path, 2)
    found = {
        name: parity.differences(parity.alone(config, tmp_path), (curves[name], weights[name]))
        for name, config in whole.items()
    }
    assert {name: values for name, values in found.items() if max(values) > 1e-5} == {}


@pytest.mark.slow
def test_copies_of_a_split_model_train_what_one_process_trains(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    cases = [("tensor 2 x 2", method, "fp32", "concat") for method in ("full", "lora")]
    found = parity.compare(cases, tmp_path, tiny_model, rows)
    assert {case: values for case, values in found.items() if max(values) > 1e-5} == {}


REFUSED = {
    "one worker": (1, {}, "there is one"),
    "sizes that don't multiply": (3, {"parallel__tensor_parallel_size": 2}, "not a multiple"),
    "heads": (4, {}, "2 key and value heads"),
    "an elastic group": (4, {"ray__num_workers": "2:4"}, "fixed number"),
    "blocks of 4 bits": (2, {"method": "qlora"}, "don't fit rows of 32, 48"),
    "adapters elsewhere": (
        2,
        {"method": "lora", "lora__target_modules": ["lm_head"]},
        "can't split adapters of lm_head",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused(name: str, configure: Configure, tmp_path: Path) -> None:
    workers, settings, message = REFUSED[name]
    config = configure(parallel__strategy="tensor", **settings)
    with pytest.raises(ConfigError, match=message):
        prepare(config, tmp_path, workers, False, None)


def test_a_family_without_a_plan_is_refused(configure: Configure, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "stablelm", "stablelm")
    config = configure(model=str(folder), parallel__strategy="tensor")
    with pytest.raises(ConfigError, match="model family stablelm"):
        prepare(config, tmp_path, 2, False, None)


def test_8_bits_and_dora_are_refused_together() -> None:
    lora = {"use_dora": True, "qlora_4bit": False}
    with pytest.raises(ConfigError) as caught:
        validated({"method": "qlora", "parallel": {"strategy": "tensor"}, "lora": lora})
    assert "tensor can't shard 8-bit weights" in str(caught.value)
    assert "lora.use_dora" in str(caught.value)
