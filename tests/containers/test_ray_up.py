"""`ray up` with the shipped files, against containers with sshd that play the workstations."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import KEITAI, ROOT, SHARED
from tests.containers.compose import IMAGE, USER, until
from tests.helpers.command import summary_of

pytestmark = pytest.mark.containers
HOSTS = SHARED / "containers" / "hosts.sh"
FILE = "/tmp/cluster.yaml"


class Laptop:
    """A container from which `ray up` is called, and hosts of its network that `ray up` reaches.

    Args:
        folder: gets the key, the token, and `data`, which all hosts see.
    """

    def __init__(self, folder: Path, hosts: tuple[str, ...]) -> None:
        self.hosts, self.data = hosts, folder / "data"
        token = folder / "token"
        token.write_text(secrets.token_hex(32), "utf-8")
        token.chmod(0o400)
        os.chown(token, USER, USER)
        for path in (self.data, self.data / "models", self.data / "outputs"):
            path.mkdir()
            os.chown(path, USER, USER)
        keys = {"KEYS": str(folder / "keys")}
        run(str(HOSTS), "docker", IMAGE, hosts[0], seconds=400, environment=keys)
        common = ["podman", "run", "-d", "--replace", "--no-healthcheck", "--network", "aift"]
        for host in hosts:
            # as hosts.sh starts them, and with a folder that all of them see
            run(
                *common,
                *("--name", host, "--hostname", host, "--shm-size", "1g", "--privileged"),
                *("-v", "/var/lib/containers/storage:/images:ro", "-v", "/var/lib/containers"),
                *("-v", f"{self.data}:/data", "localhost/aift-host-docker"),
            )
        run(
            *common,
            *("--name", "laptop", "--user", "root", "-e", "RAY_AUTH_MODE=token"),
            *("-v", f"{folder / 'keys' / 'key'}:/keys/key:ro"),
            *("-v", f"{token}:/home/app/.ray/auth_token:ro", "-v", f"{ROOT}:/project:ro"),
            *("-w", "/project", IMAGE, "sleep", "infinity"),
        )

    def do(self, *command: str, seconds: float = 200, fails: bool = False) -> str:
        """What a command on the laptop prints; it must succeed, or fail where it shall."""
        return run("podman", "exec", "laptop", *command, seconds=seconds, fails=fails)

    def shell(self, line: str) -> str:
        return self.do("sh", "-c", line)

    def up(self, name: str, own: str) -> None:
        """`ray up` with a shipped file on these hosts."""
        own = f"{own}\\ndocker: {{image: {IMAGE}}}\\n"
        lines = f"printf '{own}' > /tmp/own.yaml; python cluster/overlay.py cluster/{name}"
        self.shell(f"{lines} cluster/no-gpu.yaml /tmp/own.yaml > {FILE}")
        started = time.monotonic()
        told = self.do("ray", "up", "-y", "--no-config-cache", FILE)
        assert "up-to-date" in told
        print(f"ray up {name}: {time.monotonic() - started:.0f} s")

    def nodes(self, number: int) -> None:
        """Wait until the cluster has so many nodes."""
        lines = [""]

        def all_there() -> bool:
            lines[0] = self.do("ray", "exec", FILE, "ray status")
            return f" {number} local.cluster.node" in lines[0]

        started = time.monotonic()
        until(all_there, 120, lambda: lines[0])
        print(f"{number} nodes: {time.monotonic() - started:.0f} s later\n{lines[0][-900:]}")

    def down(self) -> None:
        """`ray down`; nothing of it is left on the hosts."""
        started = time.monotonic()
        self.do("ray", "down", "-y", FILE)
        print(f"ray down: {time.monotonic() - started:.0f} s")
        for host in self.hosts:
            assert run("podman", "exec", host, "docker", "ps", "-q").strip() == ""

    def remove(self) -> None:
        for name in (*self.hosts, "laptop"):
            subprocess.run(
                ["podman", "rm", "-f", "-t", "3", "-v", name], capture_output=True, check=False
            )


def run(
    *command: str,
    seconds: float = 120,
    fails: bool = False,
    environment: dict[str, str] | None = None,
) -> str:
    """What a command prints."""
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """A laptop and two workstations."""
    if not HOSTS.is_file() or not shutil.which("podman") or os.geteuid() != 0:
        pytest.skip("needs root, Podman, and shared/containers for hosts with sshd")
    if subprocess.run(["podman", "image", "exists", IMAGE], check=False).returncode:
        pytest.skip(f"there is no image {IMAGE}: make images")
    names = tuple(f"aift-host-{secrets.token_hex(2)}-{n}" for n in (1, 2))
    started = Laptop(tmp_path_factory.mktemp("up"), names)
    yield started
    started.remove()


def test_one_workstation_comes_and_goes(laptop: Laptop) -> None:
    laptop.up("a5000x2.yaml", f"provider: {{head_ip: {laptop.hosts[0]}}}")
    laptop.nodes(1)
    laptop.down()


def test_two_workstations_train_by_a_job_from_the_laptop(laptop: Laptop) -> None:
    first, second = laptop.hosts
    laptop.up("a5000x2-multi.yaml", f"provider: {{head_ip: {first}, worker_ips: [{second}]}}")
    laptop.nodes(2)
    subprocess.run(
        ["podman", "exec", "-d", "laptop", "ray", "dashboard", FILE], check=True, timeout=60
    )
    submit = ("ray", "job", "submit", "--address", "http://127.0.0.1:8265")
    until(lambda: "succeeded" in laptop.shell(f"{' '.join(submit)} -- true || true"), 120)
    told = laptop.do(*submit, "--", "aift-ray", "doctor", "--storage", "/outputs")
    print(told[-3000:])
    assert told.count("/outputs is written and seen") == 2
    for name in ("train.jsonl", "eval.jsonl"):
        shutil.copy(KEITAI / name, laptop.data / "outputs")
    argv = ("--train-file", "/outputs/train.jsonl", "--output-dir", "/outputs/first")
    argv += ("--num-workers", "2", "--max-steps", "20", "--training.warmup_steps", "2")
    environment = ("--runtime-env", "cluster/runtime-env.yaml")
    told = laptop.do(
        *submit, *environment, "--", "python", "-m", "aift_ray.train", *argv, seconds=400
    )
    print(told[-2500:])
    found = summary_of(laptop.data / "outputs" / "first")
    assert (found["status"], found["world_size"]) == ("done", 2)
    wrong = ("python", "-m", "aift_ray.train", "--train-file", "/outputs/nothing.jsonl")
    told = laptop.do(*submit, "--", *wrong, fails=True)
    assert "nothing.jsonl" in told
    laptop.down()
