"""Adapters on `aift-ray serve`: one as the model itself, damaged ones, changed ones."""

from __future__ import annotations

import json
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from aift_ray.serve import run
from aift_ray.utils.exit_status import guarded
from tests.helpers.served import Served
from tests.serving.conftest import write_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MARKED = "バ"
PROMPT = {"prompt": "昔々、", "max_tokens": 8, "temperature": 0}


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def emptied(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def listed(folder: Path) -> None:
    (folder / CONFIG).write_text("[1]", "utf-8")


def unfinished(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA", ', "utf-8")


def set_to(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        (folder / CONFIG).write_text(json.dumps(config | values), "utf-8")

    return damage


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ', "utf-8")


def bytes_of(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def stored_in(dtype: torch.dtype) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        stored = load_file(folder / WEIGHTS)
        save_file({key: value.to(dtype) for key, value in stored.items()}, folder / WEIGHTS)

    return damage


DEEP = b"[" * 100_000
DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": empty,
    "emptied": emptied,
    "listed": listed,
    "unfinished": unfinished,
    "wrong-rank": set_to(r=7),
    "no-rank": set_to(r="many"),
    "no-number": set_to(lora_alpha=float("nan")),
    "pattern": set_to(rank_pattern=["q_proj"]),
    "no-layers": set_to(target_modules=["nothing"]),
    "tokenizer": broken_tokenizer,
    "deep": bytes_of(CONFIG, DEEP),
    "deep-tokenizer": bytes_of("tokenizer.json", DEEP),
    "no-text": bytes_of("chat_template.jinja", b"\xff"),
    "record": bytes_of("aift_ray.json", b'{"base": "x"}'),
    "eight-bits": stored_in(torch.float8_e4m3fn),
    "integers": stored_in(torch.int64),
    "complex": stored_in(torch.complex64),
    "infinite-scale": set_to(lora_alpha=1e308),
    "base-number": set_to(base_model_name_or_path=5),
    # with these PEFT would change the base for everybody
    "pissa": set_to(init_lora_weights="pissa"),
    "olora": set_to(init_lora_weights="olora"),
    "lora-ga": set_to(init_lora_weights="lora_ga"),
    "replicated": set_to(layer_replication=[[0, 2], [1, 3]]),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("sound") / "model", 3)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, sound: Path, tiny_model: Path) -> Path:
    """A folder of adapters, most of them damaged."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, damage in DAMAGES.items():
        shutil.copytree(sound, folder / name)
        damage(folder / name)
    write_adapter(folder / "other-base", 0, tiny_model)
    for name in ("removed", "rewritten", unicodedata.normalize("NFD", MARKED)):
        shutil.copytree(sound, folder / name)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sound: Path, shelf: Path) -> Iterator[Served]:
    """The adapter of a finished run as --model, and nobody is asked for a key."""
    folder = tmp_path_factory.mktemp("adapters")
    flags = ("--serving.adapter_folder", str(shelf), "--no-auth")
    made = Served(folder, "--model", str(sound), *flags)
    yield made
    made.stop()


def load(served: Served, name: str) -> httpx.Response:
    return served.http.post("/v1/load_lora_adapter", json={"lora_name": name})


def names(served: Served) -> list[str]:
    return [model["id"] for model in served.http.get("/v1/models").json()["data"]]


def answer(served: Served, model: str) -> httpx.Response:
    return served.http.post("/v1/completions", json=PROMPT | {"model": model})


@pytest.mark.ray
def test_the_folder_of_an_adapter_is_served_on_its_base(served: Served) -> None:
    assert names(served) == ["hina-4m", "model"]
    told = {name: answer(served, name).json()["choices"][0]["text"] for name in names(served)}
    assert told["hina-4m"] != told["model"]
    assert 'data-asks-key="no"' in served.anybody("GET", "/").text


@pytest.mark.ray
@pytest.mark.parametrize("name", [*DAMAGES, "other-base"])
def test_a_damaged_adapter_is_400_and_forgotten(
    served: Served, shelf: Path, tiny_model: Path, name: str
) -> None:
    # where it is, what is wrong in it, or which base it was made for
    told = {str(shelf / name), CONFIG, str(tiny_model)}
    before = answer(served, "hina-4m").json()["choices"]
    for _ in range(2):
        response = load(served, name)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == "lora_name"
        assert name in error["message"]
        assert any(each in error["message"] for each in told), error
    assert "model" in names(served)
    assert name not in names(served)
    assert answer(served, name).status_code == 404
    gone = served.http.post("/v1/unload_lora_adapter", json={"lora_name": name})
    assert gone.status_code == 404
    assert answer(served, "model").status_code == 200
    assert answer(served, "hina-4m").json()["choices"] == before


@pytest.mark.ray
def test_names_are_the_same_whatever_their_marks_are_made_of(served: Served) -> None:
    apart = unicodedata.normalize("NFD", MARKED)
    assert apart != MARKED
    assert load(served, MARKED).json()["id"] == MARKED
    assert load(served, apart).status_code == 400
    for name in (MARKED, apart):
        assert answer(served, name).status_code == 200
        assert served.http.get(f"/v1/models/{name}").json()["id"] == MARKED
    gone = served.http.post("/v1/unload_lora_adapter", json={"lora_name": apart})
    assert gone.json()["id"] == MARKED


@pytest.mark.ray
def test_a_new_replica_starts_without_what_it_can_not_load_and_says_so(
    served: Served, shelf: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("removed", "rewritten"):
        assert load(served, name).status_code == 200
    shutil.rmtree(shelf / "removed")
    other = write_adapter(tmp_path_factory.mktemp("other") / "model", 4)
    shutil.copy(other / WEIGHTS, shelf / "rewritten" / WEIGHTS)
    # what is loaded is not touched by it
    assert answer(served, "removed").json()["choices"] == answer(served, "model").json()["choices"]
    [replica] = served.replicas()
    replica.kill()
    killed, health = time.monotonic(), []
    while not health or health[-1].status_code != 200 or time.monotonic() < killed + 2:
        begun = time.monotonic()
        health.append(served.http.get("/healthz", timeout=10))
        assert time.monotonic() < begun + 5
        assert time.monotonic() < killed + 60
    assert {response.status_code for response in health} == {200, 503}
    refused = next(response for response in health if response.status_code == 503)
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert names(served) == ["hina-4m", "model"]
    assert answer(served, "model").status_code == 200
    figures = served.http.get("/metrics").text.splitlines()
    left = [line for line in figures if line.startswith("aift_adapters_left_out{")]
    assert [line.split('adapter="')[1].split('"')[0] for line in left] == ["removed", "rewritten"]
    assert load(served, "rewritten").status_code == 400
    for name in ("removed", "rewritten"):
        assert answer(served, name).status_code == 404
        gone = served.http.post("/v1/unload_lora_adapter", json={"lora_name": name})
        assert gone.status_code == 200
    assert "aift_adapters_left_out{" not in served.http.get("/metrics").text
    assert load(served, "rewritten").status_code == 200
    assert answer(served, "rewritten").status_code == 200


@pytest.mark.parametrize("name", [*DAMAGES, "other-base"])
def test_a_damaged_adapter_is_refused_before_the_start(
    shelf: Path, tiny_model: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(run, ["--adapter", f"x={shelf / name}", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "adapter x" in told
    assert str(tiny_model if name == "other-base" else shelf / name) in told


def test_several_models_are_refused(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(run, ["--model", "hina-4m", f"--model={sound}", "--dry-run"]) == 2
    assert "--adapter NAME=FOLDER" in capsys.readouterr().err


def test_an_adapter_as_the_model_has_the_served_name(
    sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(run, ["--model", str(sound), "--served-model-name", "x", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    shown = dict(line.split(maxsplit=1) for line in told if line.startswith("  "))
    assert shown["model"].strip() == "hina-4m"
    assert shown["adapters"].strip() == "x"
    clash = ["--model", str(sound), "--adapter", f"model={sound}", "--dry-run"]
    assert guarded(run, clash) == 2
    assert "the model is called model, too" in capsys.readouterr().err


def test_an_adapter_without_its_base_says_which_is_missing(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(sound, folder)
    set_to(base_model_name_or_path="/gone/base")(folder)
    assert guarded(run, ["--model", str(folder), "--dry-run"]) == 2
    assert "/gone/base" in capsys.readouterr().err
