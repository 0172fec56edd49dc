"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import socket
from itertools import count

# below those that the system gives to whoever asks for any, and beside Ray's own
_FIRST, _NUMBER = 20_000, 6_000
_calls = count(os.getpid())


def free_port() -> int:
    """A port of the loopback address that nobody listens on, and that nobody else will take.

    Each process of pytest-xdist has a range of its own, and gives no port twice in a row.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(_NUMBER):
        port = _FIRST + process * _NUMBER + next(_calls) % _NUMBER
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no port is free")
