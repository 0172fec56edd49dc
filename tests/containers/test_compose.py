"""A cluster of containers: trains, survives the loss of one, and serves what it trained."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import KEITAI
from tests.containers.compose import IMAGE, USER, Composed, engine, until
from tests.helpers.command import curve_of, summary_of

pytestmark = pytest.mark.containers


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Head and two workers."""
    found = engine()
    if found is None:
        pytest.skip("needs Docker with compose, or Podman with podman-compose")
    composed = Composed(*found, tmp_path_factory.mktemp("compose"))
    try:
        composed.call("image", "inspect", IMAGE)
    except AssertionError:
        pytest.skip(f"there is no image {IMAGE}: make images")
    try:
        composed.compose("up", "-d", "--scale", "worker=2")
        joined = "/3.0 CPU"
        until(lambda: joined in status(composed), 180, lambda: status(composed))
        yield composed
    finally:
        composed.down()


def status(cluster: Composed) -> str:
    """What `ray status` says; empty before the head is there."""
    try:
        return cluster.on_head("ray", "status")
    except AssertionError:
        return ""


def test_nothing_runs_as_root_or_writes_outside_its_volumes(cluster: Composed) -> None:
    assert cluster.on_head("id", "-u").strip() == str(USER)
    denied = "touch /opt/x 2>&1; touch /home/app/x 2>&1; touch /outputs/x /models/x /tmp/x; true"
    assert cluster.on_head("sh", "-c", denied).count("Read-only file system") == 2


def test_a_node_tells_its_health(cluster: Composed) -> None:
    if cluster.tool != "podman":
        pytest.skip("Docker runs health checks by itself")
    cluster.call("healthcheck", "run", cluster.containers("worker")[0])


def test_the_doctor_looks_at_every_container(cluster: Composed) -> None:
    job = ("ray", "job", "submit", "--", "aift-ray", "doctor", "--storage", "/outputs")
    told = cluster.on_head(*job)
    assert told.count("/outputs is written and seen") == 3
    assert told.count("reaches 3 nodes") == 3
    assert "the same on 3 nodes" in told


def test_a_killed_container_costs_a_restart_and_the_result_is_served(
    cluster: Composed, tmp_path: Path
) -> None:
    folder, log = cluster.outputs / "first", tmp_path / "job.log"
    for name in ("train.jsonl", "eval.jsonl"):
        shutil.copy(KEITAI / name, cluster.outputs)
    job = cluster.on_head_meanwhile(
        log,
        *("ray", "job", "submit", "--", "aift-ray", "train", "--num-workers", "2"),
        *("--train-file", "/outputs/train.jsonl", "--eval-file", "/outputs/eval.jsonl"),
        *("--output-dir", "/outputs/first", "--max-steps", "160", "--training.batch_size", "8"),
        *("--training.gradient_accumulation_steps", "1", "--training.save_steps", "10"),
        *("--training.logging_steps", "1", "--training.learning_rate", "5e-3"),
        *("--training.warmup_steps", "10"),
    )

    def steps() -> int:
        assert job.poll() is None, log.read_text("utf-8")
        return len(curve_of(folder)) if (folder / "metrics.jsonl").is_file() else 0

    until(lambda: steps() >= 25, 240, lambda: log.read_text("utf-8"))
    at_work = [
        c for c in cluster.containers("worker") if "RayTrainWorker" in cluster.call("top", c)
    ]
    cluster.call("kill", at_work[0])
    assert job.wait(400) == 0, log.read_text("utf-8")
    found = summary_of(folder)
    assert (found["status"], found["restarts"], found["world_size"]) == ("done", 1, 2)
    assert found["resumed_from"] >= 20
    assert found["eval_loss"] < found["eval_loss_before"] / 2
    served(cluster)


def served(cluster: Composed) -> None:
    """The adapter that was trained answers over HTTP, to who has the key."""
    options = "--model hina-4m --adapter polite=/outputs/first/model"
    cluster.compose("--profile", "serve", "up", "-d", "serve", AIFT_SERVE_OPTIONS=options)
    started = time.monotonic()
    until(lambda: answer(cluster, "/healthz")[0] == 200, 240)
    print(f"served {time.monotonic() - started:.0f} s after its start")
    question = {
        "model": "polite",
        "messages": [{"role": "user", "content": "次の文を敬体に書き換えてください。\n雨が降る。"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    code, text = answer(cluster, "/v1/chat/completions", question)
    assert code == 200, text
    assert json.loads(text)["choices"][0]["message"]["content"]
    assert answer(cluster, "/v1/models", key="wrong")[0] == 401


def answer(
    cluster: Composed, path: str, body: dict[str, object] | None = None, key: str = ""
) -> tuple[int, str]:
    """Status and text of a request to the served model."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.port}{path}",
        json.dumps(body).encode() if body else None,
        {"Authorization": f"Bearer {key or cluster.key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
