"""`ray job submit` as from a laptop: logs, exit status, stopping, going on, secrets."""

from __future__ import annotations

import re
import secrets
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aift_ray.engine import checkpoint
from tests.conftest import ROOT
from tests.containers.compose import until
from tests.helpers.command import BIN, Cluster, curve_of, flags, summary_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SECRET = f"hf_{secrets.token_hex(16)}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose nodes know a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        started = Cluster(tmp_path_factory.mktemp("ray"))
    yield started
    started.stop()


def submitted(cluster: Cluster, name: str, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`ray job submit` from a place that knows the token and the address, and no secret."""
    command = [str(BIN / "ray"), "job", "submit", "--submission-id", name]
    command += ["--working-dir", str(ROOT), "--runtime-env", "cluster/runtime-env.yaml"]
    command += ["--", "python", "-m", "aift_ray.train", *argv]
    environment = {k: v for k, v in cluster.jobs.items() if k not in ("HF_TOKEN", "RAY_ADDRESS")}
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )


def test_a_job_that_is_stopped_keeps_its_steps_and_no_secret_is_told(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "job.log"
    argv = flags(tiny_model, rows_file, folder)
    first = submitted(cluster, "first", [*argv, "--max-steps", "100000"], log)

    def steps() -> int:
        assert first.poll() is None, log.read_text("utf-8")
        return len(curve_of(folder)) if (folder / "metrics.jsonl").is_file() else 0

    until(lambda: steps() >= 5, 120, lambda: log.read_text("utf-8"))
    until(lambda: "/100000 epoch" in log.read_text("utf-8"), 30, lambda: "the log does not follow")
    stop = [str(BIN / "ray"), "job", "stop", "first"]
    subprocess.run(stop, env=cluster.jobs, check=True, capture_output=True, timeout=120)
    assert first.wait(60) == 0, log.read_text("utf-8")
    assert "Job 'first' was stopped" in log.read_text("utf-8")
    assert "go on with" in log.read_text("utf-8")
    assert summary_of(folder)["status"] == "interrupted"
    step = checkpoint.steps(folder / "checkpoints")[-1]
    assert step == len(curve_of(folder))
    total = ["--max-steps", str(step + 10)]
    again = submitted(cluster, "second", [*argv, *total, "--resume", "latest"], log)
    assert again.wait(240) == 0, log.read_text("utf-8")
    assert f"resumed from checkpoints/step-{step}" in log.read_text("utf-8")
    assert len(curve_of(folder)) == step + 10
    assert SECRET not in log.read_text("utf-8")
    assert places_of(SECRET, session_of(cluster)) == []
    assert SECRET not in shown(cluster)


def session_of(cluster: Cluster) -> Path:
    """The folder where Ray keeps logs and more."""
    lines = [
        " ".join(process.cmdline())
        for process in psutil.Process(cluster.head.pid).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
    ]
    found = re.search(r"/tmp/ray/session_[\d_-]+", " ".join(lines))
    assert found
    return Path(found[0])


def places_of(text: str, folder: Path) -> list[str]:
    """Files that hold a text."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in paths if text.encode() in path.read_bytes()]


def shown(cluster: Cluster) -> str:
    """What the dashboard tells of jobs and actors to who has the token."""
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text("utf-8")
    text = ""
    routes = ("/api/jobs/", "/api/v0/actors?detail=1", "/api/v0/workers?detail=1")
    for route in (*routes, "/api/train/v2/runs/v1"):
        request = urllib.request.Request(
            cluster.jobs["RAY_API_SERVER_ADDRESS"] + route,
            headers={"Authorization": f"Bearer {token}"},
        )
        try:
            text += urllib.request.urlopen(request, timeout=30).read().decode()
        except urllib.error.HTTPError as error:
            # what fails, for nothing of its kind is left, shall not tell a secret either
            text += error.read().decode()
    assert "aift_ray.train" in text, "the jobs are shown"
    return text
