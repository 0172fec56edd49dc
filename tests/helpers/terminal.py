"""What a command writes to a terminal of some width."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.conftest import ROOT


def on_terminal(width: int, *argv: str) -> tuple[int, list[str]]:
    """The status of a verb and the lines that it writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "aift_ray", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(width)}
    process = subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:
            break
        text += read
    os.close(ours)
    return process.wait(60), text.decode().splitlines()
