"""Training on real Ray workers, started by the command as a user starts it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from aift_ray.commandline import parse
from aift_ray.engine import checkpoint
from tests.conftest import ROOT, write_rows
from tests.engine.runs import curve, free_port

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent


class Cluster:
    """A Ray head on the loopback address, with token authentication."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32), "utf-8")
        self.port, dashboard = free_port(), free_port()
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        flags = {
            "--port": self.port,
            "--dashboard-port": dashboard,
            "--dashboard-agent-listen-port": free_port(),
            "--dashboard-agent-grpc-port": free_port(),
            "--ray-client-server-port": free_port(),
            "--num-cpus": 4,
        }
        command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
        # the smallest port of the workers lies above all that were chosen
        command += [f"{name}={value}" for name, value in flags.items()]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        self.log = folder / "ray.log"
        self.head = subprocess.Popen(
            command, env=self.environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )
        self.jobs = self.environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        self.wait(60)
        address = self.log.read_text("utf-8").split("--address='")[1].split("'")[0]
        self.environment["RAY_ADDRESS"] = address

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while "--address='" not in self.log.read_text("utf-8"):
            assert time.monotonic() < end, self.log.read_text("utf-8")
            assert self.head.poll() is None, self.log.read_text("utf-8")
            time.sleep(0.5)

    def stop(self) -> None:
        children = psutil.Process(self.head.pid).children(recursive=True)
        for process in (*children, self.head):
            process.kill()
        self.head.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for the tests of this module."""
    # Ray's sockets need a short path
    started = Cluster(tmp_path_factory.mktemp("ray"))
    yield started
    started.stop()


class Command:
    """`python -m aift_ray.train` in a process of its own."""

    def __init__(
        self, cluster: Cluster, argv: list[str], environment: dict[str, str] | None = None
    ):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aift_ray.train", *argv],
            env=environment or cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self, seconds: float = 180) -> tuple[int, str]:
        """Exit status and output."""
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output

    def at_step(self, folder: Path, step: int, seconds: float = 120) -> None:
        """Wait until the run has taken `step` steps."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.communicate()[0]
            if (folder / "metrics.jsonl").is_file() and len(curve_of(folder)) >= step:
                return
            time.sleep(0.1)
        raise AssertionError("the run does not get on")


def flags(model: Path, rows: Path, folder: Path, **values: Any) -> list[str]:
    """Flags of a small run on two workers."""
    settings: dict[str, Any] = {
        "model": model,
        "train-file": rows,
        "output-dir": folder,
        "num-workers": 2,
        "data.sequence_length": 128,
        "lora.lora_dropout": 0.0,
        "training.learning_rate": 0.01,
        "training.batch_size": 4,
        "training.gradient_accumulation_steps": 1,
        "training.warmup_steps": 0,
        "training.logging_steps": 1,
        "training.gradient_checkpointing": "false",
    }
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def curve_of(folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step that a run has logged."""
    lines = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
        if line.endswith("}")
    ]
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def summary_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return result


def alone(argv: list[str], folder: Path) -> list[tuple[float, float]]:
    """The same run in one process: twice the batch, half the workers."""
    config = parse(argv, "train", "").config
    config.training.batch_size *= 2
    return curve(config, folder)


def same(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    assert len(a) == len(b)
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-5)


def test_two_ray_workers_take_the_steps_of_one_process(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    argv = flags(
        tiny_model,
        rows_file,
        folder,
        training__exact_match_rows=2,
        ray__storage_path=tmp_path / "store",
    )
    status, output = Command(cluster, [*argv, "--eval-file", str(held_out)]).done()
    assert status == 0, output
    same(curve_of(folder), alone(argv, tmp_path))
    found = summary_of(folder)
    assert (found["status"], found["world_size"], found["restarts"]) == ("done", 2, 0)
    assert len(found["peak_memory_gb"]) == 2
    assert found["start_s"] < found["wall_s"]
    assert output.index("plan") < output.index("step 1/9") < output.index("summary")
    for word in ("Warning", "WARNING", "INFO", "pid="):
        assert word not in output, output
    assert list((tmp_path / "store").rglob("trainer_state.pt")), "checkpoints are copied there"
    again, _ = Command(cluster, [*argv, "--eval-file", str(held_out), "--resume", "latest"]).done()
    assert again == 0, "a finished run is left alone"


LONG = {"training__num_epochs": 40, "training__save_steps": 10}


@pytest.fixture(scope="module")
def long_run(
    cluster: Cluster, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[float, float]]]:
    """Rows, and the curve of a run of 120 steps on two workers that nothing disturbed."""
    folder = tmp_path_factory.mktemp("long")
    rows = write_rows(folder / "train.jsonl")
    status, output = Command(cluster, flags(tiny_model, rows, folder / "run", **LONG)).done()
    assert status == 0, output
    return rows, curve_of(folder / "run")


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    cluster: Cluster,
    tiny_model: Path,
    long_run: tuple[Path, list[tuple[float, float]]],
    tmp_path: Path,
) -> None:
    rows, whole = long_run
    folder = tmp_path / "run"
    argv = flags(tiny_model, rows, folder, **LONG)
    for number, expected in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        command = Command(cluster, [*argv, "--resume", "latest"])
        before = len(curve_of(folder)) if (folder / "metrics.jsonl").is_file() else 0
        command.at_step(folder, before + 3)
        command.process.send_signal(number)
        status, output = command.done()
        assert status == expected, output
        assert "go on with" in output
        assert summary_of(folder)["status"] == "interrupted"
        steps = checkpoint.steps(folder / "checkpoints")
        assert steps[-1] == len(curve_of(folder)) < 120
    status, output = Command(cluster, [*argv, "--resume", "latest"]).done()
    assert status == 0, output
    assert f"resumed from checkpoints/step-{steps[-1]}" in output
    assert summary_of(folder)["resumed_from"] == steps[-1]
    assert curve_of(folder) == whole, "to the bit"


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_checkpoint(
    cluster: Cluster,
    tiny_model: Path,
    long_run: tuple[Path, list[tuple[float, float]]],
    tmp_path: Path,
) -> None:
    rows, whole = long_run
    folder = tmp_path / "run"
    command = Command(cluster, flags(tiny_model, rows, folder, **LONG))
    command.at_step(folder, 25)
    os.kill(worker_pids(cluster)[-1], signal.SIGKILL)
    status, output = command.done()
    assert status == 0, output
    found = summary_of(folder)
    assert found["restarts"] == 1
    assert len(found["causes"]) == 1
    assert found["resumed_from"] >= 20
    assert curve_of(folder) == whole, "to the bit"


def worker_pids(cluster: Cluster) -> list[int]:
    """Processes of the cluster's Ray Train workers."""
    found = [
        process.pid
        for process in psutil.Process(cluster.head.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert len(found) == 2
    return found


def test_a_job_that_fails_exits_with_an_error_and_one_that_works_with_none(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "答えがない"}\n', "utf-8")
    submit = [str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--"]
    outcomes = {}
    for name, rows in (("good", rows_file), ("bad", bad)):
        argv = flags(tiny_model, rows, tmp_path / name, **{"num-workers": 1})
        command = [*submit, "python", "-m", "aift_ray.train", *argv]
        outcomes[name] = subprocess.run(
            command, env=cluster.jobs, capture_output=True, text=True, timeout=180, check=False
        )
    assert outcomes["good"].returncode == 0, outcomes["good"].stdout + outcomes["good"].stderr
    assert summary_of(tmp_path / "good")["status"] == "done"
    assert outcomes["bad"].returncode != 0
    assert "bad.jsonl:1: the key output is missing" in outcomes["bad"].stdout


def test_a_loss_that_is_not_finite_ends_the_run_without_retrying(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    import shutil

    model = tmp_path / "broken"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / "run"
    status, output = Command(cluster, flags(model, rows_file, folder)).done()
    assert status == 1, output
    assert "step 1: loss nan" in output
    assert "train.jsonl:" in output
    assert "there is no checkpoint yet" in output
    assert "Traceback" not in output
    assert summary_of(folder)["status"] == "failed"
    assert summary_of(folder)["restarts"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_disk_that_fills_up_ends_the_run_and_names_the_last_checkpoint(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        folder = disk / "run"
        argv = flags(
            tiny_model, rows_file, folder, training__num_epochs=400, training__save_steps=5
        )
        command = Command(cluster, argv)
        command.at_step(folder, 12)
        filler = disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"x" * 4096)
                    file.flush()
            except OSError:
                pass
        status, output = command.done()
        filler.unlink()
        assert status == 1, output
        assert "No space left" in output
        assert "last good checkpoint is checkpoints/step-" in output
        assert "Traceback" not in output
        step = checkpoint.steps(folder / "checkpoints")[-1]
        assert checkpoint.damage(folder / "checkpoints" / f"step-{step}") is None
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_without_a_cluster_one_is_started_and_nothing_is_left_of_it(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    environment = {k: v for k, v in cluster.environment.items() if k != "RAY_ADDRESS"}
    before = {process.pid for process in psutil.process_iter()}
    argv = flags(tiny_model, rows_file, tmp_path / "run", method="full")
    status, output = Command(cluster, argv, environment).done()
    assert status == 0, output
    same(curve_of(tmp_path / "run"), alone(argv, tmp_path))
    time.sleep(3)
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert not [p.info["cmdline"] for p in left if "ray" in " ".join(p.info["cmdline"] or [])]


def test_a_cluster_that_is_not_there_is_named(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    environment = cluster.environment | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    environment["RAY_gcs_rpc_server_connect_timeout_s"] = "1"
    environment["RAY_NUM_REDIS_GET_RETRIES"] = "2"
    argv = flags(tiny_model, rows_file, tmp_path / "run")
    status, output = Command(cluster, argv, environment).done()
    assert status == 2, output
    assert "can't be reached" in output
    assert "Traceback" not in output
