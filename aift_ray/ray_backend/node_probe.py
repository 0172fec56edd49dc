"""Looks at one node from within; an actor on each node of a cluster, or a plain object here."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from pyarrow import fs

from aift_ray.planning.measured_rates import Rates
from aift_ray.utils.filesystems import filesystem
from aift_ray.utils.gpu_exchange import exchange
from aift_ray.utils.machine import Machine, look

_PATIENCE = 3.0


class Probe:
    """What a node has and reaches."""

    def machine(self) -> Machine:
        """What the node has."""
        return look()

    def exchange(self, gpus: int, limit: float) -> tuple[str, str]:
        """Sum over the node's GPUs; why that fails, as it is and without peer-to-peer.

        Empty where it doesn't fail; each within `limit` seconds.
        """
        why = exchange(gpus, limit)
        return why, exchange(gpus, limit, NCCL_P2P_DISABLE="1") if why else ""

    def bench(self, gpus: int) -> list[Rates]:
        """What each of the node's GPUs reaches; without any, a thread of its CPU."""
        # torch takes seconds to import
        from aift_ray.utils.bench import measured

        return [measured(number) for number in range(gpus)] or [measured(None)]

    def now(self) -> float:
        """Its clock, in seconds since 1970."""
        return time.time()

    def listen(self) -> int:
        """Take connections on a port of the system's choice, as NCCL and Gloo do; the port."""
        server = socket.create_server(("", 0), backlog=64)

        def accept() -> None:
            while True:
                server.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        return int(server.getsockname()[1])

    def unreachable(self, addresses: list[tuple[str, int]]) -> list[str]:
        """Which of these don't take a connection, as HOST:PORT (reason)."""
        found = []
        for host, port in addresses:
            try:
                socket.create_connection((host, port), timeout=_PATIENCE).close()
            except OSError as error:
                found.append(f"{host}:{port} ({error.strerror or error})")
        return found

    def taken(self, ports: list[int]) -> list[int]:
        """Which of these somebody on this machine listens on."""
        found = []
        for port in ports:
            with socket.socket() as probe:
                probe.settimeout(_PATIENCE)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    found.append(port)
        return found

    def write(self, place: str, name: str) -> str:
        """Write an empty file into `place`; what speaks against it, or nothing."""
        try:
            files, root = filesystem(place, "storage")
            files.create_dir(root, recursive=True)
            with files.open_output_stream(f"{root}/{name}") as stream:
                stream.write(b"")
        except OSError as error:
            return str(error).splitlines()[0]
        return ""

    def unseen(self, place: str, names: list[str]) -> list[str]:
        """Which of these files are not in `place`, as seen from here."""
        files, root = filesystem(place, "storage")
        entries = files.get_file_info([f"{root}/{name}" for name in names])
        return [n for n, e in zip(names, entries, strict=True) if e.type == fs.FileType.NotFound]

    def remove(self, place: str, name: str) -> None:
        """Take a file away again."""
        files, root = filesystem(place, "storage")
        with suppress(OSError):
            files.delete_file(f"{root}/{name}")
