"""Adapters that come and go while the server runs, by their names in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aift_ray.config import ServeConfig, ServingConfig
from aift_ray.errors import ModelError
from aift_ray.serving import startup
from tests.serving.conftest import Site, write_adapter

PROMPT = {"prompt": "昔々、", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, adapters: dict[str, Path], tiny_model: Path
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "大阪弁").symlink_to(adapters["大阪弁"])
    (folder / "empty").mkdir()
    write_adapter(folder / "foreign", 0, tiny_model)
    made = Site(tmp_path_factory.mktemp("opened"), {}, adapter_folder=str(folder))
    yield made
    made.close()


def names(site: Site) -> list[str]:
    return [model["id"] for model in site.send("GET", "/v1/models").json()["data"]]


def test_an_adapter_is_loaded_answers_as_ever_and_goes(opened: Site, site: Site) -> None:
    assert names(opened) == ["hina-4m"]
    body = PROMPT | {"model": "大阪弁"}
    assert opened.send("POST", "/v1/completions", json=body).status_code == 404
    for _ in range(2):
        loaded = opened.send("POST", "/v1/load_lora_adapter", json={"lora_name": "大阪弁"})
        assert (loaded.status_code, loaded.json()["id"]) == (200, "大阪弁")
        assert names(opened) == ["hina-4m", "大阪弁"]
        told = opened.send("POST", "/v1/completions", json=body).json()
        expected = site.send("POST", "/v1/completions", json=body).json()
        assert told["choices"] == expected["choices"]
        again = opened.send("POST", "/v1/load_lora_adapter", json={"lora_name": "大阪弁"})
        assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
        gone = opened.send("POST", "/v1/unload_lora_adapter", json={"lora_name": "大阪弁"})
        assert gone.json() == {"id": "大阪弁", "object": "model", "deleted": True}
        assert opened.send("POST", "/v1/completions", json=body).status_code == 404


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("../大阪弁", 400, "not a path"),
        ("/etc", 400, "not a path"),
        ("a\\b", 400, "not a path"),
        ("..", 400, "not a path"),
        ("", 400, "at least 1"),
        ("nothing", 404, "holds no 'nothing'"),
        ("hina-4m", 404, "holds no"),
        ("empty", 400, "no adapter_config.json"),
        ("foreign", 400, "made for another base"),
    ],
)
def test_what_can_not_be_loaded_is_refused(opened: Site, name: str, status: int, told: str) -> None:
    response = opened.send("POST", "/v1/load_lora_adapter", json={"lora_name": name})
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == "lora_name"
    assert told in response.json()["error"]["message"]
    assert names(opened) == ["hina-4m"]


def test_no_path_is_taken_and_a_key_is_asked_for(opened: Site) -> None:
    body = {"lora_name": "大阪弁", "lora_path": "/somewhere"}
    response = opened.send("POST", "/v1/load_lora_adapter", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "lora_path")
    for route in ("load", "unload"):
        path = f"/v1/{route}_lora_adapter"
        assert opened.send("POST", path, key=None, json={"lora_name": "大阪弁"}).status_code == 401


def test_a_folder_that_is_gone_takes_no_replica_down(tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    made = Site(tmp_path, {}, adapter_folder=str(folder))
    folder.rmdir()
    response = made.send("POST", "/v1/load_lora_adapter", json={"lora_name": "x"})
    assert response.status_code == 404
    config = ServeConfig(serving=ServingConfig(adapter_folder=str(folder)))
    assert startup.check_base(config, gpu=False).location
    with pytest.raises(ModelError, match="is no folder"):
        startup.check(config, gpu=False)
    made.close()


def test_without_a_folder_nothing_is_loaded_and_strangers_are_not_unloaded(site: Site) -> None:
    response = site.send("POST", "/v1/load_lora_adapter", json={"lora_name": "x"})
    assert response.status_code == 404
    assert "serving.adapter_folder" in response.json()["error"]["message"]
    response = site.send("POST", "/v1/unload_lora_adapter", json={"lora_name": "hina-4m"})
    assert response.status_code == 404
