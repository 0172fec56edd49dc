"""Starts Ray clusters and the training command for tests, as a user would."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from aift_ray.engine import checkpoint
from tests.conftest import ROOT
from tests.helpers.ports import free_port

BIN = Path(sys.executable).parent
# an interpreter that sees the packages of another has no script of its own
RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Cluster:
    """A Ray head on the loopback address, with token authentication."""

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32), "utf-8")
        self.port, dashboard, self.metrics_port = free_port(), free_port(), free_port()
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
            "--metrics-export-port": self.metrics_port,
            "--num-cpus": cpus,
        }
        command = [*RAY, "start", "--head", "--block", "--disable-usage-stats"]
        # the smallest port of the workers lies above all that were chosen
        command += [f"{name}={value}" for name, value in flags.items()]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        self.log = folder / "ray.log"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.head = subprocess.Popen(
            command, env=self.environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )
        self.jobs = self.environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        try:
            self.wait(180)
        except AssertionError:
            lose(self.head)
            raise
        address = self.log.read_text("utf-8").split("--address='")[1].split("'")[0]
        self.environment["RAY_ADDRESS"] = address

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while "--address='" not in self.log.read_text("utf-8"):
            assert time.monotonic() < end, self.log.read_text("utf-8")
            assert self.head.poll() is None, self.log.read_text("utf-8")
            time.sleep(0.5)

    def add_node(self, cpus: int = 1, **variables: str) -> subprocess.Popen[bytes]:
        """A further node on this machine, with variables of its environment."""
        flags = {"--address": self.environment["RAY_ADDRESS"], "--num-cpus": cpus}
        ports = ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port")
        flags |= {name: free_port() for name in ports}
        command = [*RAY, "start", "--block", "--disable-usage-stats"]
        command += [f"{name}={value}" for name, value in flags.items()]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        log = self.log.with_name(f"node-{len(self.nodes)}.log")
        node = subprocess.Popen(
            command,
            env=self.environment | variables,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self.nodes.append(node)
        return node

    def alive(self) -> int:
        """The number of nodes that have joined and are alive."""
        url = f"{self.jobs['RAY_API_SERVER_ADDRESS']}/api/v0/nodes"
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text("utf-8")
        answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        nodes = answer.raise_for_status().json()["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def stop(self) -> None:
        for node in (*self.nodes, self.head):
            if node.poll() is None:
                lose(node)


def lose(node: subprocess.Popen[bytes]) -> None:
    """Take a node away without a word: SIGKILL to all its processes."""
    children = psutil.Process(node.pid).children(recursive=True)
    for process in (*children, node):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait(30)


def until(true: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Wait for something to become true; whether it did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(pause)
    return False


class Command:
    """`python -m aift_ray.train`, or another verb, in a process of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str], verb: str = "train") -> None:
        descriptor, name = tempfile.mkstemp(suffix=".log")
        self._log = Path(name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"aift_ray.{verb}", *argv],
            env=environment,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
        )
        os.close(descriptor)
        self._family: dict[int, psutil.Process] = {}

    def alive(self) -> bool:
        """Whether it still runs; keeps in mind who its children are."""
        if self.process.poll() is not None:
            return False
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self._family[child.pid] = child
        return True

    def family(self) -> list[psutil.Process]:
        """Every process that it has started, as far as `alive` saw them."""
        return list(self._family.values())

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text("utf-8", errors="replace")

    def done(self, seconds: float = 400) -> tuple[int, str]:
        """Exit status and output."""
        return self.process.wait(seconds), self.output()

    def at_step(self, folder: Path, step: int, seconds: float = 300) -> None:
        """Wait until the run has taken `step` steps."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.alive(), self.output()
            if (folder / "metrics.jsonl").is_file() and len(curve_of(folder)) >= step:
                return
            time.sleep(0.1)
        raise AssertionError("the run does not get on")

    def at_checkpoint(self, folder: Path, step: int, seconds: float = 300) -> None:
        """Wait until the run has saved a checkpoint of `step` or a later step."""
        end = time.monotonic() + seconds
        while not any(saved >= step for saved in checkpoint.steps(folder / "checkpoints")):
            assert self.alive(), self.output()
            assert time.monotonic() < end, "the run saves nothing"
            time.sleep(0.1)


def flags(model: Path, rows: Path, folder: Path, **values: Any) -> list[str]:
    """Flags of a small run on two workers."""
    settings: dict[str, Any] = {
        "model": model,
        "train-file": rows,
        "output-dir": folder,
        "num-workers": 2,
        "data.sequence_length": 128,
        "lora.lora_dropout": 0.0,
        "training.learning_rate": 0.001,
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
