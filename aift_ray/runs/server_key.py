"""The key that a server makes, under the user's home, for this start and the next ones."""

from __future__ import annotations

import os
from pathlib import Path

from aift_ray.errors import ConfigError, Problem
from aift_ray.serving import api_keys


def key_folder() -> Path:
    """Where a key that the server makes is kept."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "aift_ray"


def check(port: int) -> None:
    """Look whether a key is there or can be written; nothing is.

    Raises:
        ConfigError: it can't, or the file that is there can't be used.
    """
    if _file(port).exists():
        _check_file(_file(port))
        return
    folder = key_folder()
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError([_problem(folder)])


def key(port: int) -> tuple[str, str | None]:
    """The file of the key that a server on a port made, and the key where it is a new one.

    The file stays when the server stops, so that its clients go on after a restart.

    Raises:
        ConfigError: it can't be written, or holds no key.
    """
    file = _file(port)
    if file.exists():
        _check_file(file)
        file.chmod(0o600)
        return str(file), None
    _make_folder()
    return str(file), api_keys.make(file)


def _file(port: int) -> Path:
    return key_folder() / f"key-{port}"


def _check_file(file: Path) -> None:
    try:
        api_keys.Keys(file)
    except ConfigError as error:
        remedy = "remove it, and a new key is made"
        what = f"{file}: {error.problems[0].what}"
        raise ConfigError([Problem("API key", what, remedy)]) from None


def _make_folder() -> None:
    folder = key_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise ConfigError([_problem(folder)]) from None


def _problem(folder: Path) -> Problem:
    remedy = "give --api-key-file, or set HOME or XDG_STATE_HOME to a folder that can be written"
    return Problem("API key", f"{folder}, where it is kept, can't be written", remedy)
