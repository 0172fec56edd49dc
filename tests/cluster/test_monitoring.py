"""A real Prometheus scrapes a run and a server, and answers every query of the dashboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, write_rows
from tests.containers.compose import until
from tests.helpers.command import Cluster, Command, flags
from tests.helpers.ports import free_port

MONITORING = ROOT / "cluster" / "monitoring"
# what a machine without a GPU has nothing to say to
OF_GPUS = ("ray_node_gpus_utilization", "ray_node_gram_used")


def queries() -> list[str]:
    """Every query of the dashboard, its variables as Grafana fills them in."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text("utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [expr.replace("$run", ".*").replace("$__rate_interval", "30s") for expr in found]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Any]:
    """Starts Prometheus with the shipped settings, but for places and haste; asks it."""
    if not shutil.which("prometheus"):
        pytest.skip("needs Prometheus: apt-get install prometheus")
    processes = []

    def start(targets: list[str], server: str, key: Path) -> Any:
        (tmp_path / "nodes.json").write_text(json.dumps([{"targets": targets}]), "utf-8")
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
        config["global"]["scrape_interval"] = "1s"
        ray, serve = config["scrape_configs"]
        ray["file_sd_configs"][0]["files"] = [str(tmp_path / "nodes.json")]
        serve["authorization"]["credentials_file"] = str(key)
        serve["static_configs"][0]["targets"] = [server]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
        address = f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
        with (tmp_path / "prometheus.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))

        def ask(query: str) -> list[Any]:
            url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            try:
                answer = json.loads(urllib.request.urlopen(url, timeout=10).read())
            except OSError:
                return []
            result: list[Any] = answer["data"]["result"]
            return result

        return ask

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with four CPUs."""
    started = Cluster(tmp_path_factory.mktemp("ray"))
    yield started
    started.stop()


@pytest.mark.slow
@pytest.mark.ray
def test_every_query_of_the_dashboard_is_answered(
    cluster: Cluster, prometheus: Any, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    held_out, key = write_rows(tmp_path / "eval.jsonl", 4, 100), tmp_path / "keys"
    key.write_text("only-for-this-test", "utf-8")
    endless = {"training__num_epochs": 2000, "training__eval_steps": 5}
    training = Command(
        [
            *flags(tiny_model, rows_file, tmp_path / "first", **endless),
            "--eval-file",
            str(held_out),
        ],
        cluster.environment,
    )
    port = free_port()
    served = ["--port", str(port), "--api-key-file", str(key), "--serving.cpus_per_replica", "1"]
    serving = Command(served, cluster.environment, "serve")
    try:
        training.at_step(tmp_path / "first", 6)
        until(lambda: f"ready on http://127.0.0.1:{port}" in serving.output(), 120, serving.output)
        ask = prometheus([f"127.0.0.1:{cluster.metrics_port}"], f"127.0.0.1:{port}", key)
        silent = set(queries())

        def all_answered() -> bool:
            question(port)
            silent.difference_update([query for query in silent if ask(query)])
            return all(query.startswith(OF_GPUS) for query in silent)

        until(all_answered, 120, lambda: f"no answer to {sorted(silent)}")
        runs = {series["metric"]["run"] for series in ask("ray_aift_train_loss")}
        workers = {s["metric"]["worker"] for s in ask("ray_aift_train_peak_memory_bytes")}
        assert (runs, workers) == ({"first"}, {"0", "1"})
    finally:
        training.process.terminate()
        serving.process.terminate()
        training.done()
        serving.done()


def question(port: int) -> None:
    """Have the server answer something."""
    body = {"instruction": "次の文を敬体に書き換えてください。", "input": "雨が降る。"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate",
        json.dumps(body | {"max_new_tokens": 8}).encode(),
        {"Authorization": "Bearer only-for-this-test", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).close()
