"""A name that only the Hub could have fails in seconds where the Hub does not answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from aift_ray.errors import ModelError
from aift_ray.models import hub
from aift_ray.utils import hub_reach
from tests.conftest import ROOT, SHIPPED
from tests.helpers import hub_server


@pytest.fixture(autouse=True)
def asked_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_reach.why_unreached.cache_clear()
    yield
    hub_reach.why_unreached.cache_clear()


def test_a_hub_that_refuses_a_connection_is_not_asked_for_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    for load in (hub.load_config, hub.load_tokenizer):
        with pytest.raises(ModelError, match="the Hub can't be reached"):
            load("someone/nothing")
    assert time.monotonic() - began < hub_reach.PATIENCE
    # a folder needs none
    assert hub.load_config(str(SHIPPED)).model_type == "llama"


def test_any_answer_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server.hub() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert hub_reach.why_unreached() == ""


def test_a_hub_that_must_not_be_asked_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_reach.why_unreached() == "HF_HUB_OFFLINE is set"
    with pytest.raises(ModelError, match="the Hub can't be reached"):
        hub.load_config("someone/nothing")


def cached(cache: Path, *names: str) -> str:
    """A Hub id of which a cache holds some of the shipped model's files."""
    place = cache / "models--someone--partial"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40, "utf-8")
    (place / "snapshots" / ("a" * 40)).mkdir(parents=True)
    for name in names:
        shutil.copy(SHIPPED / name, place / "snapshots" / ("a" * 40))
    return "someone/partial"


@pytest.mark.parametrize(
    ("verb", "names", "missing"),
    [
        ("evaluate", ["config.json"], "its weights and tokenizer"),
        ("evaluate", ["config.json", "tokenizer.json"], "its weights"),
        ("export", ["config.json"], "its weights and tokenizer"),
        ("serve", ["config.json"], "its weights and tokenizer"),
        ("train", ["config.json"], "its tokenizer"),
    ],
)
def test_what_is_in_the_cache_in_part_is_refused_at_once(
    verb: str, names: list[str], missing: str, tmp_path: Path
) -> None:
    model = cached(tmp_path / "cache", *names)
    rows = {"evaluate": "--task", "train": "--train-file"}.get(verb)
    argv = [verb, "--model", model, *([rows, str(ROOT / "examples/rows.jsonl")] if rows else [])]
    argv += [] if verb == "serve" else ["--dry-run"]
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    where["HF_HUB_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "aift_ray", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | where,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    told = " ".join(done.stderr.split())
    assert f"model {model}: {missing} missing on this machine, and the Hub" in told
    assert "Retry" not in done.stderr


def test_a_whole_model_in_the_cache_needs_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    model = cached(tmp_path, "config.json", "tokenizer.json", "model.safetensors")
    hub.check_reach(model, "weights", "tokenizer")
    (tmp_path / "models--someone--partial/snapshots" / ("a" * 40) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="its weights missing on this machine"):
        hub.check_reach(model, "weights", "tokenizer")


@pytest.mark.parametrize(("verb", "offline"), [("export", "0"), ("serve", "0"), ("serve", "1")])
def test_a_launched_command_does_not_try_again(verb: str, offline: str) -> None:
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-m", "aift_ray", verb, "--model", "someone/nothing"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | where,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "model someone/nothing: missing on this machine" in done.stderr
    assert "Retry" not in done.stderr
    assert "starting Ray" not in done.stdout
