"""Whether a server can write what it writes under the user's home: its key."""

from __future__ import annotations

import os
from pathlib import Path

from aift_ray.errors import ConfigError, Problem


def key_folder() -> Path:
    """Where a key that the server makes is kept."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "aift_ray"


def check() -> None:
    """Look whether a key can be written; nothing is.

    Raises:
        ConfigError: it can't.
    """
    folder = key_folder()
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError([_problem(folder)])


def make() -> None:
    """Make the key's folder; ConfigError where it can't be made after all."""
    folder = key_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise ConfigError([_problem(folder)]) from None


def _problem(folder: Path) -> Problem:
    remedy = "give --api-key-file, or set HOME or XDG_STATE_HOME to a folder that can be written"
    return Problem("API key", f"{folder}, where it is kept, can't be written", remedy)
