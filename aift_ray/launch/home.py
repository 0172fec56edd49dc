"""Whether a server can write what it writes under the user's home: its key, and Ray's token."""

from __future__ import annotations

import os
from pathlib import Path

from aift_ray.errors import ConfigError, Problem

_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def key_folder() -> Path:
    """Where a key that the server makes is kept."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "aift_ray"


def check(makes_key: bool) -> None:
    """Look whether all of it can be written; nothing is.

    Args:
        makes_key: whether the server makes a key of its own.

    Raises:
        ConfigError: it can't.
    """
    problems = []
    folder, token = key_folder(), Path.home() / ".ray"
    if makes_key and not _writable(folder):
        problems.append(_key_problem(folder))
    if _makes_token(token / "auth_token") and not _writable(token):
        problems.append(_token_problem(token))
    if problems:
        raise ConfigError(problems)


def make(makes_key: bool) -> None:
    """Make the folders of both; ConfigError where one can't be made after all."""
    folder, token = key_folder(), Path.home() / ".ray"
    wanted = [(folder, _key_problem)] if makes_key else []
    wanted += [(token, _token_problem)] if _makes_token(token / "auth_token") else []
    for path, problem in wanted:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            raise ConfigError([problem(path)]) from None


def _makes_token(file: Path) -> bool:
    """Whether Ray will write a token when it starts."""
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return False
    return not any(os.environ.get(name) for name in _TOKENS) and not os.path.exists(file)


def _writable(folder: Path) -> bool:
    """Whether a folder can be written, or made where there is none yet."""
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _key_problem(folder: Path) -> Problem:
    remedy = "give --api-key-file, or set HOME or XDG_STATE_HOME to a folder that can be written"
    return Problem("API key", f"{folder}, where it is kept, can't be written", remedy)


def _token_problem(folder: Path) -> Problem:
    remedy = (
        "set HOME to a folder that can be written, or RAY_AUTH_TOKEN_PATH to a file with a token"
    )
    return Problem("Ray's token", f"{folder}, where it is kept, can't be written", remedy)
