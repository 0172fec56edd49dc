"""The cluster of docker/compose.yaml on this machine, by Docker or Podman, for tests."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.helpers.ports import free_port

IMAGE = os.environ.get("AIFT_IMAGE", "localhost/aift-ray:cpu")
# the user of the image
USER = 1000


def engine() -> tuple[str, list[str]] | None:
    """The tool and its compose command; None where there is none that runs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    compose = shutil.which("podman-compose", path=path)
    for tool, command in (("docker", ["docker", "compose"]), ("podman", [compose or ""])):
        if (
            shutil.which(tool)
            and command[0]
            and _succeeds(tool, "info")
            and _succeeds(*command[:2], "version")
        ):
            return tool, command
    return None


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


class Composed:
    """Head and two workers with one CPU each, in folders and under a name of their own.

    Args:
        folder: gets `models`, `outputs` and `secrets`.
    """

    def __init__(self, tool: str, compose: list[str], folder: Path) -> None:
        self.tool, self.name = tool, f"aift-test-{secrets.token_hex(3)}"
        self.outputs, self.key = folder / "outputs", secrets.token_hex(16)
        for name in ("models", "outputs", "secrets"):
            (folder / name).mkdir()
            os.chown(folder / name, USER, USER)
        for name, text in (("ray-token", secrets.token_hex(32)), ("api-keys", self.key)):
            path = folder / "secrets" / name
            path.write_text(text, "utf-8")
            path.chmod(0o400)
            os.chown(path, USER, USER)
        self.port = free_port()
        ray = "--num-cpus=1 --object-store-memory=200000000"
        self.environment = os.environ | {
            "AIFT_IMAGE": IMAGE,
            "AIFT_MODELS": str(folder / "models"),
            "AIFT_OUTPUTS": str(self.outputs),
            "AIFT_SECRETS": str(folder / "secrets"),
            "AIFT_SHM": "512mb",
            "AIFT_DASHBOARD_PORT": str(free_port()),
            "AIFT_PORT": str(self.port),
            "AIFT_HEAD_OPTIONS": ray,
            "AIFT_WORKER_OPTIONS": ray,
        }
        files = ("compose.yaml", "compose.cpu.yaml")
        named = [part for name in files for part in ("-f", str(ROOT / "docker" / name))]
        self._compose = [*compose, "-p", self.name, *named]

    def compose(self, *arguments: str, **environment: str) -> str:
        """What a compose command prints; fails where it fails."""
        return self._run([*self._compose, *arguments], 300, self.environment | environment)

    def down(self) -> None:
        """End all of it."""
        # podman-compose forgets what `--scale` has added, and what that depends on
        for service in ("worker", "serve", "head"):
            for container in self.containers(service, "-a"):
                self.call("rm", "-f", "-v", container)
        self.compose("--profile", "serve", "down", "-v")

    def containers(self, service: str, *which: str) -> list[str]:
        """The running containers of a service; with "-a" all of them."""
        labels = {"project": self.name, "service": service}
        filters = [f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items()]
        return self.call("ps", "-q", *which, *filters).split()

    def call(self, *arguments: str) -> str:
        """What the tool itself prints; fails where it fails."""
        return self._run([self.tool, *arguments], 120, self.environment)

    def on_head(self, *command: str) -> str:
        """What a command prints on the head."""
        return self.call("exec", self.containers("head")[0], *command)

    def on_head_meanwhile(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        """A command on the head that runs on, its output in `log`."""
        words = [self.tool, "exec", self.containers("head")[0], *command]
        with log.open("w") as file:
            return subprocess.Popen(
                words, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )

    def _run(self, command: list[str], seconds: float, environment: dict[str, str]) -> str:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def until(what: Callable[[], bool], seconds: float, why: Callable[[], str] = str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(1)
