"""Replicas that die, come and are replaced while requests are under way."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers.command import BIN, Cluster
from tests.helpers.ports import free_port
from tests.helpers.served import LONG, Served
from tests.serving.conftest import write_adapter

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SHORT = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of two replicas with a folder of adapters."""
    folder = tmp_path_factory.mktemp("pair")
    write_adapter(folder / "shelf" / "kansai", 3)
    flags = ("--num-replicas", "2", "--serving.cpus_per_replica", "1")
    made = Served(folder, *flags, "--serving.adapter_folder", str(folder / "shelf"))
    made.until_answering(2, 60)
    yield made
    made.stop()


def answers_everywhere(pair: Served, status: int) -> None:
    """Each replica gives this status for the adapter."""
    for _ in range(20):
        response = pair.http.post("/v1/completions", json=SHORT | {"model": "kansai"})
        assert response.status_code == status, response.text


def test_an_adapter_loaded_while_it_runs_is_on_every_replica(pair: Served) -> None:
    loaded = pair.http.post("/v1/load_lora_adapter", json={"lora_name": "kansai"})
    assert loaded.status_code == 200, loaded.text
    answers_everywhere(pair, 200)


def test_a_killed_replica_is_replaced_and_the_others_answer_meanwhile(
    pair: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream() -> str:
        """How a request under way ended."""
        try:
            with pair.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as told:
                if told.status_code != 200:
                    return f"status {told.status_code}"
                return list(filter(None, told.iter_lines()))[-1]
        except httpx.HTTPError as error:
            return type(error).__name__

    with ThreadPoolExecutor(6) as pool:
        under_way = [pool.submit(stream) for _ in range(6)]
        while pair.running() < 6:
            time.sleep(0.05)
        pair.replicas()[0].kill()
        killed = time.monotonic()
        refused = []
        while time.monotonic() < killed + 10:
            response = pair.http.post("/v1/completions", json=SHORT)
            if response.status_code != 200:
                refused.append((round(time.monotonic() - killed, 2), response.status_code))
        pair.until_answering(2, 90)
        recovered = time.monotonic() - killed
        ends = [each.result(120) for each in under_way]
    with capsys.disabled():
        print(f"\nrecovered in {recovered:.1f} s; refused {refused}; ends {sorted(ends)}")
    # those of the other replica are answered to their end; none hangs
    assert ends.count("data: [DONE]") >= 1
    # nothing is sent to the dead one once Serve has seen that it is gone
    assert all(at < 2 for at, _ in refused)
    # the new replica has what was loaded at run time
    answers_everywhere(pair, 200)


def test_an_adapter_that_is_unloaded_is_gone_everywhere(pair: Served) -> None:
    gone = pair.http.post("/v1/unload_lora_adapter", json={"lora_name": "kansai"})
    assert gone.status_code == 200, gone.text
    answers_everywhere(pair, 404)


def test_replicas_come_with_the_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--num-replicas", "1:2", "--serving.cpus_per_replica", "1", "--serving.slots", "1")
    served = Served(tmp_path, *flags)
    assert served.answering() == 1
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            served.http.post("/v1/completions", json=SHORT | {"max_tokens": 200})

    with ThreadPoolExecutor(5) as pool:
        asking = [pool.submit(keep_asking) for _ in range(5)]
        waited = served.until_answering(2, 180)
        over.set()
        for each in asking:
            each.result(60)
    with capsys.disabled():
        print(f"\na second replica after {waited:.1f} s")
    served.stop()


class Deployed:
    """A Serve config file on a cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self.port = free_port()
        (folder / "keys").write_text("secret\n", "utf-8")
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": "Bearer secret"},
            timeout=60,
        )

    def deploy(self, **arguments: Any) -> None:
        """`serve deploy FILE`."""
        serving = {
            "api_key_file": str(self._folder / "keys"),
            "num_replicas": 2,
            "cpus_per_replica": 1,
        }
        application = {
            "name": "aift-ray",
            "route_prefix": "/",
            "import_path": "aift_ray.launch.serving:build",
            "args": {"serving": serving} | arguments,
        }
        content = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [application],
        }
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
        dashboard = self._cluster.jobs["RAY_API_SERVER_ADDRESS"]
        subprocess.run(
            [str(BIN / "serve"), "deploy", "--address", dashboard, str(file)],
            env=self._cluster.environment,
            check=True,
        )

    def models(self) -> list[str]:
        """What the server says that it has; nothing where none answers."""
        try:
            response = self.http.get("/v1/models")
        except httpx.HTTPError:
            return []
        if response.status_code != 200:
            return []
        return [model["id"] for model in response.json()["data"]]

    def until(self, models: list[str], seconds: float = 120) -> None:
        """Wait until all that is answered is so."""
        end, alike = time.monotonic() + seconds, 0
        while alike < 20:
            alike = alike + 1 if self.models() == models else 0
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_config_file_is_deployed_and_replaced_without_losing_a_request(
    cluster: Cluster, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "kansai", 3)
    deployed = Deployed(cluster, tmp_path)
    deployed.deploy()
    deployed.until(["hina-4m"])
    over = threading.Event()

    def keep_asking() -> list[str]:
        ends = []
        while not over.is_set():
            body = SHORT | {"max_tokens": 60, "stream": True}
            with deployed.http.stream("POST", "/v1/completions", json=body) as told:
                lines = [line for line in told.iter_lines() if line]
                ends.append(lines[-1] if told.status_code == 200 else f"{told.status_code} {lines}")
                if len(lines) > 1 and told.status_code == 200:
                    json.loads(lines[0].removeprefix("data: "))
        return ends

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking) for _ in range(4)]
        deployed.deploy(adapters=[f"kansai={adapter}"])
        deployed.until(["hina-4m", "kansai"])
        over.set()
        ends = [end for each in asking for end in each.result(60)]
    assert len(ends) > 20
    assert set(ends) == {"data: [DONE]"}
    subprocess.run(
        [
            str(BIN / "serve"),
            "shutdown",
            "-y",
            "--address",
            cluster.jobs["RAY_API_SERVER_ADDRESS"],
        ],
        env=cluster.environment,
        check=True,
    )
