"""The side of a worker process that asks: starts it, waits for answers, and ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from aift_ray.rewards.process_guard import MOST, TOO_LARGE, TOO_MANY
from aift_ray.rewards.user_function import MORE_MEMORY

# seconds for a process to import what it needs before it loads any reward
_START = 120.0
# seconds in which it ends itself, and all that a reward has started
_END = 15.0
_SAID = {
    TOO_MANY: f"it had more than {MOST} processes",
    TOO_LARGE: f"its processes hold more memory together than its limit ({MORE_MEMORY})",
}
_MAIN = (
    "import json, sys; fd, parent, memory, sys.path[:] = json.loads(sys.argv[1]); "
    "from aift_ray.rewards.reward_worker import main; main(fd, parent, memory)"
)


class WorkerEnded(Exception):
    """The process ended before it answered; the message says how."""


class WorkerTimeout(Exception):
    """The process did not answer in time."""


class Worker:
    """One process.

    Args:
        memory: bytes of data that it may hold; None: any number.
        starter: whose thread starts the process, which ends with that thread.
    """

    def __init__(self, memory: int | None, starter: ThreadPoolExecutor) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = starter.submit(_start, theirs.fileno(), memory).result()
        self._connection = Connection(ours.detach())
        # of what computes; 0: it has not started yet
        self._group = 0
        try:
            self._group = self._receive(_START)["started"]
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, request: tuple[Any, ...], timeout: float) -> Any:
        """The answer to a request.

        Raises:
            WorkerEnded, WorkerTimeout: there is none; the process is of no further use.
        """
        try:
            self._connection.send(request)
        except (BrokenPipeError, ConnectionError):
            raise WorkerEnded(self._end()) from None
        return self._receive(timeout)

    def kill(self) -> None:
        """End the process and what it started, and close the connection."""
        self.kill_process()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        self._process.kill()
        if self._process.wait() == -signal.SIGKILL and self._group:
            # its guard could not do so
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)
        self._connection.close()

    def kill_process(self) -> None:
        """End the process and what it started; who waits for an answer gets WorkerEnded."""
        self._process.terminate()

    def _receive(self, timeout: float) -> Any:
        try:
            if not self._connection.poll(timeout):
                raise WorkerTimeout(f"it did not answer within {timeout:g} s")
            return json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise WorkerEnded(self._end()) from None

    def _end(self) -> str:
        try:
            status = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if status < 0:
            return f"its process was ended by signal {-status} ({signal.Signals(-status).name})"
        return _SAID.get(status, f"its process ended with status {status}")


def _start(descriptor: int, memory: int | None) -> subprocess.Popen[bytes]:
    told = json.dumps([descriptor, os.getpid(), memory, sys.path])
    # the same hashes, and the same sums, wherever a row is scored
    further = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, told],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        env=os.environ | further,
        start_new_session=True,
    )
