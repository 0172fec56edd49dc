"""`aift-ray serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import ROOT
from tests.helpers.ports import free_port

# the schema keeps the model from ending its answer
ENDLESS = {"type": "array", "items": {"enum": [1]}, "minItems": 900}
LONG = {
    "model": "hina-4m",
    "prompt": "昔々、",
    "max_tokens": 1500,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}},
}


class Served:
    """The command in a process of its own.

    Args:
        python: the interpreter to start it with.
        patience_s: what it may take to be ready.
        port: 0: a free one.

    Attributes:
        loading: what `/healthz` answered before it was ready.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        python: str = sys.executable,
        patience_s: float = 300,
        port: int = 0,
    ) -> None:
        self.port, self.log = port or free_port(), folder / "serve.log"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self.start = time.monotonic()
        command = [python, "-m", "aift_ray.serve", "--port", str(self.port), *flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.loading: list[httpx.Response] = []
        try:
            self.wait_for("ready on", patience_s, self._ask_health)
        except BaseException:
            # nobody else could end it
            self.stop()
            raise
        told = self.log.read_text("utf-8")
        self.key = told.split("shown this once: ")[1].split()[0] if "shown this" in told else ""
        if self.key:
            self.http.headers["Authorization"] = f"Bearer {self.key}"

    def wait_for(
        self, text: str, seconds: float, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        end = time.monotonic() + seconds
        while text not in self.log.read_text("utf-8"):
            assert self.process.poll() is None, self.log.read_text("utf-8")
            assert time.monotonic() < end, self.log.read_text("utf-8")
            time.sleep(0.2)
            meanwhile()

    def _ask_health(self) -> None:
        """Keep what `/healthz` says while nothing is ready yet."""
        with suppress(httpx.TransportError):
            self.loading.append(self.http.get("/healthz", timeout=10))

    def anybody(self, method: str, path: str, **content: Any) -> httpx.Response:
        """A request without a key, on a connection of its own."""
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=20, **content)

    def running(self) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("aift_running{"))

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in family if each.name().startswith("ray::ServeRepli")]

    def answering(self) -> int:
        """How many replicas tell their figures."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(line.startswith("aift_running{") for line in lines)

    def until_answering(self, number: int, seconds: float) -> float:
        """Wait until that many do; the seconds that it took."""
        start = time.monotonic()
        while True:
            try:
                if self.answering() == number:
                    return time.monotonic() - start
            except httpx.HTTPError:
                pass
            assert time.monotonic() < start + seconds, self.log.read_text("utf-8")
            time.sleep(0.2)

    def stop(self) -> None:
        """As Ctrl-C or SIGTERM does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(90)
