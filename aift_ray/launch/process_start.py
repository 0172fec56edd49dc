"""When a process began, by the clock of the whole machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil


def process_start() -> float:
    """When this process began, as time.time() counts."""
    if sys.platform != "linux":
        return float(psutil.Process().create_time())
    # psutil adds the start to a boot time that is known to whole seconds only
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    since_boot = int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
