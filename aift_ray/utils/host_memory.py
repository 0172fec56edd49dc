"""How full this machine's memory is, or that of the container that this process is in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

# of cgroups 2 and 1: the limit, what is in use, and which of that the kernel can take back
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def in_use(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Bytes in use, and bytes there are; of the machine or the container, whichever is smaller."""
    machine = psutil.virtual_memory()
    found = machine.total - machine.available, machine.total
    for limit, usage, stat, cache in _CGROUPS:
        with suppress(OSError, ValueError, KeyError):
            # without a limit this is a word, or a number beyond all memory
            total = int((root / limit).read_text("ascii"))
            lines = (root / stat).read_text("ascii").splitlines()
            kept = dict(line.split(" ", 1) for line in lines)
            if total < found[1]:
                found = int((root / usage).read_text("ascii")) - int(kept[cache]), total
    return found
