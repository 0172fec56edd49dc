"""Memory in use and CPUs of this machine, or of the container that this process is in."""

from __future__ import annotations

import os
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
# of cgroups 2 and 1: the files with the CPU time that may be used in a period, and the period
_CPU_LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))


def host_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs of the machine or the container, whichever has fewer."""
    found = min(os.cpu_count() or 1, len(os.sched_getaffinity(0)))
    for files in _CPU_LIMITS:
        with suppress(OSError, ValueError):
            # without a limit the first is a word, or negative
            quota, period = " ".join((root / f).read_text("ascii") for f in files).split()
            if int(quota) > 0:
                found = min(found, int(quota) // int(period))
    return max(1, found)


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
