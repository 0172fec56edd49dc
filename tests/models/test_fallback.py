"""Where a model does not load, another does, and it is said why."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import OutOfMemoryError

from aift_ray.errors import ConfigError, ModelError
from aift_ray.models import fallback
from aift_ray.models import load as loading
from aift_ray.models.catalog import CATALOG
from aift_ray.models.japanese_model import JapaneseModel
from tests.helpers.hub_server import hub

CPU = torch.device("cpu")
DEFAULT = "stabilityai/japanese-stablelm-3b-4e1t-instruct"
GIB = 2**30


def test_a_model_that_loads_needs_no_fallback() -> None:
    model = JapaneseModel("hina-4m", CPU)
    assert model.load_with_fallback([DEFAULT])
    assert model.model_name == "hina-4m"
    assert model.failures == {}


def test_the_first_that_loads_is_taken_and_every_failure_is_told(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"12345678")
    empty = tmp_path / "empty"
    empty.mkdir()
    model = JapaneseModel("no such model", CPU)
    with caplog.at_level(logging.WARNING, "aift_ray"):
        assert model.load_with_fallback([str(damaged), str(empty), "hina-4m", DEFAULT])
    assert model.model_name == "hina-4m"
    assert model.load_model().num_parameters() == 4_245_760
    assert list(model.failures) == ["no such model", str(damaged), str(empty)]
    for name, part in (
        ("no such model", "missing"),
        (str(damaged), "damaged"),
        (str(empty), "no config.json"),
    ):
        assert part in model.failures[name]
        assert f"{name} does not load: {model.failures[name]}" in caplog.messages
    assert "using hina-4m in place of no such model" in caplog.messages


def test_nothing_that_loads_leaves_the_name_as_it_was() -> None:
    model = JapaneseModel("nowhere", CPU)
    assert not model.load_with_fallback(["nothing"])
    assert model.model_name == "nowhere"
    assert set(model.failures) == {"nowhere", "nothing"}
    with pytest.raises(ModelError, match="nowhere"):
        model.load_model()


def test_without_a_network_the_default_model_falls_back_to_the_shipped_one() -> None:
    model = JapaneseModel(device=CPU)
    assert model.load_with_fallback()
    assert model.model_name == "hina-4m"
    assert "the Hub can't be reached" in model.failures[DEFAULT]
    assert len(model.failures) > 5


@pytest.mark.parametrize("error", [MemoryError("full"), OutOfMemoryError("CUDA out of memory")])
def test_running_out_of_memory_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, error: BaseException
) -> None:
    load = loading.load_model

    def replaced_load(location: str, *arguments: Any) -> Any:
        if location == str(tiny_model):
            raise error
        return load(location, *arguments)

    monkeypatch.setattr(loading, "load_model", replaced_load)
    model = JapaneseModel(str(tiny_model), CPU)
    assert model.load_with_fallback(["hina-4m"])
    assert model.failures[str(tiny_model)].startswith("out of memory")


def test_weights_larger_than_the_memory_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "huge")
    numbers = CATALOG["elyza/Llama-3-ELYZA-JP-8B"].config
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(stored | numbers), encoding="utf-8")
    memory = psutil.virtual_memory()._replace(available=20 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    model = JapaneseModel(str(folder), CPU)
    with pytest.raises(ModelError, match=r"need 29.9 GiB, and 20.0 GiB are free on cpu"):
        model.load_model()


def test_smaller_models_come_largest_first_and_fit() -> None:
    names = fallback.smaller_models("elyza/Llama-3-ELYZA-JP-8B", 2, None, 8 * GIB)
    sizes = [CATALOG[name].architecture.parameters for name in names]
    assert sizes == sorted(sizes, reverse=True)
    assert 4 * GIB > sizes[0] > 3 * GIB
    assert names[-1] == "hina-4m"
    in_4_bits = fallback.smaller_models("elyza/Llama-3-ELYZA-JP-8B", 2, 4, 8 * GIB)
    assert CATALOG[in_4_bits[0]].architecture.parameters > 7e9
    # its embeddings of each layer, which stay at 16 bits, are 5.2 GiB
    assert "google/gemma-4-E4B-it" not in in_4_bits
    assert "elyza/Llama-3-ELYZA-JP-8B" in fallback.smaller_models("my/model", 2, None, 99 * GIB)


@pytest.mark.parametrize("given", ["hina-4m", [3], {"hina-4m": 1}])
def test_fallbacks_that_are_no_list_of_names_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="fallback_models"):
        JapaneseModel("hina-4m", CPU).load_with_fallback(given)


def test_gated_and_missing_models_of_a_hub_are_told_apart(tmp_path: Path) -> None:
    code = (
        "from aift_ray import JapaneseModel\n"
        "model = JapaneseModel('someone/gated-model')\n"
        "assert model.load_with_fallback(['elyza/Llama-3-ELYZA-JP-8', 'hina-4m'])\n"
        "print(model.model_name, model.failures)"
    )
    with hub() as address:
        settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.startswith("hina-4m ")
    assert "gated: the Hub wants an account that has accepted its terms" in done.stdout
    assert "missing: the Hub has no such model" in done.stdout
    assert "did you mean elyza/Llama-3-ELYZA-JP-8B" in done.stdout
