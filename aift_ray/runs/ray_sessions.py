"""The sessions that a Ray of this program leaves: folders with its logs, which nobody reads."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

_MARK = ".aift-ray"
_NAME = re.compile(r"session_[\d_-]+_(\d+)")
# days for which logs of a run may still be asked for
_KEPT_S = 7 * 86_400.0


def mark(session: Path) -> None:
    """Note that this program has started the Ray of a session folder; remove older ones."""
    with suppress(OSError):
        (session / _MARK).touch()
        remove(over(time.time() - _KEPT_S, session.parent))


def over(before: float, place: Path | None = None) -> list[Path]:
    """Sessions of this program that have ended and were begun before a time.

    Args:
        place: the folder of the sessions; None: Ray's own.
    """
    place = place or Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    found = []
    for folder in place.glob("session_*"):
        named = _NAME.fullmatch(folder.name)
        ours = named and (folder / _MARK).is_file() and not folder.is_symlink()
        with suppress(OSError):
            old = ours and (folder / _MARK).stat().st_mtime < before
            # its name ends with the process that started it
            if named and old and not psutil.pid_exists(int(named[1])):
                found.append(folder)
    return sorted(found)


def remove(sessions: list[Path]) -> None:
    """Remove session folders."""
    for folder in sessions:
        shutil.rmtree(folder, ignore_errors=True)
