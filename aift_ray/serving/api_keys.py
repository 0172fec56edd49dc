"""API keys from a file: compared by hash, read again when the file changes."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from aift_ray.errors import ConfigError, Problem

_LOOK_AGAIN_S = 2.0


class Keys:
    """The keys of a file, one a line; blank lines and lines that begin with # don't count.

    Raises:
        ConfigError: the file can't be read or holds no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes = _read(path)
        self._version = _version(path)
        self._looked = time.monotonic()

    def accepts(self, key: str) -> bool:
        """Whether `key` is one of them."""
        self._refresh()
        given = _hash(key)
        # every one is compared, so that the time tells nothing
        return sum(hmac.compare_digest(given, known) for known in self._hashes) > 0

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        version = _version(self._path)
        if version == self._version:
            return
        try:
            self._hashes = _read(self._path)
        except ConfigError:
            # a file that is just being written, or was emptied by mistake, locks nobody out
            return
        self._version = version


def make(path: Path) -> str:
    """A new key, written to `path`, which only its owner may read."""
    key = f"aift-{secrets.token_urlsafe(32)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{key}\n")
    beside.replace(path)
    return key


def _read(path: Path) -> list[bytes]:
    where = f"api-key-file {path}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(where, f"can't be read: {error}")]) from None
    keys = [line.strip() for line in lines]
    hashes = [_hash(key) for key in keys if key and not key.startswith("#")]
    if not hashes:
        remedy = "write a key a line, or leave the flag out to have one made"
        raise ConfigError([Problem(where, "holds no key", remedy)])
    return hashes


def _version(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
