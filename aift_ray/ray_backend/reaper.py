"""Ends what a killed command leaves behind: Ray's agents would stay for another minute.

Runs as a process of its own, `python -m aift_ray.ray_backend.reaper PID [FOLDER]`, whose standard
input closes when the process PID ends, however it ends. FOLDER is removed last.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# seconds between looks at who belongs to the family, and what they get to end by themselves
_INTERVAL, _GRACE = 2.0, 5.0


@contextmanager
def watched(folder: Path | None = None) -> Iterator[None]:
    """While this lasts, the Ray processes that this process starts end with it.

    Args:
        folder: what they need, and nobody after them.
    """
    command = [sys.executable, "-m", "aift_ray.ray_backend.reaper", str(os.getpid())]
    reaper = subprocess.Popen(
        command + ([str(folder)] if folder else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # what stops this process's group shall not stop the reaper
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert reaper.stdin
        reaper.stdin.close()
        reaper.wait()


def main() -> None:
    """Wait for the end of a process, then end what is left of its Ray."""
    parent, gone = psutil.Process(int(sys.argv[1])), threading.Event()

    def wait() -> None:
        sys.stdin.read()
        gone.set()

    threading.Thread(target=wait, daemon=True).start()
    family: set[psutil.Process] = set()
    while not gone.wait(_INTERVAL):
        with suppress(psutil.Error):
            family.update(ray_processes(parent))
    end = time.monotonic() + _GRACE
    while any(alive(process) for process in family) and time.monotonic() < end:
        time.sleep(0.1)
    for process in family:
        with suppress(psutil.Error):
            # psutil checks that the number was not given to another process
            process.kill()
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)


def ray_processes(parent: psutil.Process) -> list[psutil.Process]:
    """The servers of Ray that `parent` has started, and all that they have started."""
    servers = [child for child in parent.children() if "/ray/" in " ".join(child.cmdline())]
    return [p for server in servers for p in (server, *server.children(recursive=True))]


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; zombie processes do not count."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    main()
