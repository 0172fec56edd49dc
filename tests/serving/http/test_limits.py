"""Load and time: a full queue, answers that take too long, keys that change, fewer bits."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aift_ray.serving import api_keys
from tests.serving.conftest import Site

LONG = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": 1500}


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory, adapters: dict[str, Path]) -> Iterator[Site]:
    """One slot, one request may wait, none takes more than a second."""
    folder = tmp_path_factory.mktemp("tight")
    made = Site(folder, adapters, slots=1, max_queue=1, request_timeout_s=1.0)
    # no token ends an answer
    made.service.encoder.stop_ids.clear()
    yield made
    made.close()


def test_more_than_the_queue_holds_gets_429_and_when_to_come_back(tight: Site) -> None:
    async def asked() -> list[Any]:
        async with tight.client() as client:
            posts = (client.post("/v1/completions", json=LONG) for _ in range(4))
            return list(await asyncio.gather(*posts))

    responses = tight.run(asked())
    refused = [each for each in responses if each.status_code == 429]
    assert len(refused) == 2
    for response in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
    counted = [
        line for line in tight.send("GET", "/metrics").text.splitlines() if "refused" in line
    ]
    assert float(counted[0].split()[-1]) == 2
    assert tight.send("POST", "/v1/completions", json=LONG | {"max_tokens": 1}).status_code == 200


def test_several_answers_that_do_not_fit_the_queue_start_none(tight: Site) -> None:
    response = tight.send("POST", "/v1/completions", json=LONG | {"n": 3})
    assert response.status_code == 429
    assert tight.service.engine.figures().waiting == 0


def test_an_answer_that_takes_too_long_is_504_and_in_a_stream_the_last_event(tight: Site) -> None:
    response = tight.send("POST", "/v1/completions", json=LONG)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    told = tight.send("POST", "/v1/completions", json=LONG | {"stream": True})
    assert told.status_code == 200
    events = [line for line in told.text.split("\n\n") if line]
    assert len(events) > 2
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"


def test_keys_change_without_a_restart(tight: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_LOOK_AGAIN_S", 0.05)
    before = tight.key_file.read_text("utf-8")

    def status(key: str) -> int:
        time.sleep(0.1)
        return tight.send("GET", "/v1/models", key=key).status_code

    assert (status(Site.KEY), status("sk-new")) == (200, 401)
    beside = tight.key_file.with_name("beside")
    beside.write_text("sk-new\n", "utf-8")
    os.replace(beside, tight.key_file)
    assert (status(Site.KEY), status("sk-new")) == (401, 200)
    tight.key_file.write_text("", "utf-8")
    # emptied by mistake: nobody is locked out
    assert (status(Site.KEY), status("sk-new")) == (401, 200)
    tight.key_file.write_text(before, "utf-8")
    assert (status(Site.KEY), status("sk-new")) == (200, 401)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_fewer_bits_answer_alone_as_in_a_batch_with_adapters(
    tmp_path: Path, adapters: dict[str, Path], load_in: str
) -> None:
    site = Site(tmp_path, adapters, load_in=load_in)
    bodies = [
        {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0}
        for model in ("hina-4m", *adapters)
        for prompt in ("昔々、", "今日の天気は")
    ]

    async def together() -> list[Any]:
        async with site.client() as client:
            posts = (client.post("/v1/completions", json=body) for body in bodies)
            return list(await asyncio.gather(*posts))

    alone = [site.send("POST", "/v1/completions", json=body).json() for body in bodies]
    told = [response.json() for response in site.run(together())]
    assert [each["choices"] for each in told] == [each["choices"] for each in alone]
    assert len({each["choices"][0]["text"] for each in alone}) >= 4
    site.close()
