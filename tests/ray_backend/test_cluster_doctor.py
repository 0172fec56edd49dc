"""`aift-ray doctor` on this machine and on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aift_ray.errors import ConfigError
from aift_ray.ray_backend import cluster_doctor
from aift_ray.ray_backend.node_probe import Probe
from tests.helpers.command import Cluster, until
from tests.helpers.ports import free_port


def told(*flags: str, environment: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Exit status, and what is told as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "aift_ray.doctor", "--json", *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def levels(answer: dict[str, Any], check: str) -> list[str]:
    return [f["level"] for f in answer["findings"] if f["check"] == check]


def test_what_the_bench_measured_is_what_plans_take(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    plan = [sys.executable, "-m", "aift_ray.plan", "--json", "--gpu", "measured"]
    before = subprocess.run(plan, env=environment, capture_output=True, text=True, check=False)
    assert before.returncode == 2
    assert "aift-ray doctor --bench" in before.stderr
    _, answer = told("--bench", environment=environment)
    assert set(levels(answer, "bench")) == {"ok"}
    kept = json.loads((tmp_path / "aift_ray" / "rates.json").read_text("utf-8"))
    after = subprocess.run(plan, env=environment, capture_output=True, text=True, check=True)
    card = json.loads(after.stdout)["gpu"]
    assert (card["measured"], card["name"]) == (True, kept["name"])
    assert card["tflops"] == kept["tflops"]["bf16"] > 0
    assert card["bandwidth"] == kept["bandwidth"] > 0


def test_this_machine_alone_and_its_storage(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", "utf-8")
    status, answer = told("--storage", str(tmp_path / "good"), "--storage", str(blocked))
    assert levels(answer, "storage") == ["ok", "problem"]
    assert (status, answer["well"]) == (1, False)
    assert list((tmp_path / "good").iterdir()) == [], "nothing is left there"
    _, dry = told("--storage", str(tmp_path / "dry"), "--dry-run")
    assert not (tmp_path / "dry").exists()
    assert levels(dry, "storage") == []


def test_a_place_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from aift_ray.config import DoctorConfig

    with pytest.raises(ConfigError, match="storage"):
        cluster_doctor.run(DoctorConfig(storage=["nowhere://x"]), dry_run=False)


def test_a_cluster_out_of_reach_is_something_to_mend() -> None:
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    status, answer = told(environment=environment)
    assert (status, levels(answer, "ray")) == (1, ["problem"])
    assert len(answer["machines"]) == 1, "this machine was looked at all the same"


def test_a_port_in_use_is_told_apart_from_a_free_one() -> None:
    probe = Probe()
    port, free = probe.listen(), free_port()
    assert probe.taken([port, free]) == [port]
    assert probe.unreachable([("127.0.0.1", port)]) == []
    (missing,) = probe.unreachable([("127.0.0.1", free)])
    assert missing.startswith(f"127.0.0.1:{free} (")


@pytest.mark.ray
@pytest.mark.slow
def test_every_node_of_a_cluster_is_looked_at_within_half_a_minute(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    cluster = Cluster(folder, cpus=1)
    try:
        cluster.add_node()
        assert until(lambda: cluster.alive() == 2, 120)
        place = str(tmp_path / "shared")
        started = time.monotonic()
        status, answer = told("--storage", place, environment=cluster.environment)
        took = time.monotonic() - started
    finally:
        cluster.stop()
    assert len(answer["machines"]) == 2
    assert (levels(answer, "storage"), levels(answer, "network")) == (["ok"] * 2, ["ok"] * 2)
    assert levels(answer, "versions") == ["ok"]
    assert levels(answer, "clock") == ["ok"] * 2, "both nodes are this machine"
    assert answer["well"] == (status == 0)
    assert took < 60, "30 s on a machine that does nothing else"
