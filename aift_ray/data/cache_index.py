"""The token caches on this machine: how large, how old, whose; and those that may go."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{32}")
# of each cache, the output folders of the runs that have used it, a line each
USERS = "used_by.txt"
# a run that has told nothing for so long is taken for dead
_SILENT_S = 86_400.0


@dataclass(frozen=True)
class Cache:
    """A token cache.

    Attributes:
        size: in bytes.
        used: when it was last used, as time.time() counts.
        users: output folders of the runs that have used it and are still there.
        running: one of them runs.
    """

    folder: Path
    size: int
    used: float
    users: list[Path]
    running: bool


def note_user(cache: Path, output: Path) -> None:
    """Keep in mind that the run of an output folder uses a cache."""
    line, file = str(output), cache / USERS
    known = file.read_text("utf-8").splitlines() if file.is_file() else []
    if line not in known:
        file.write_text("".join(f"{each}\n" for each in (*known, line)), "utf-8")


def found(place: Path) -> list[Cache]:
    """The caches in a folder, last used first."""
    if not place.is_dir():
        return []
    caches = [_cache(each) for each in place.iterdir() if _NAME.fullmatch(each.name)]
    return sorted(caches, key=lambda cache: -cache.used)


def _cache(folder: Path) -> Cache:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    file = folder / USERS
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    users = [Path(line) for line in lines if Path(line).is_dir()]
    return Cache(folder, size, folder.stat().st_mtime, users, any(map(_runs, users)))


def _runs(output: Path) -> bool:
    try:
        status = json.loads((output / "summary.json").read_text("utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    told = max((file.stat().st_mtime for file in output.iterdir()), default=0.0)
    return bool(status == "running" and time.time() - told < _SILENT_S)


def doomed(
    caches: list[Cache], older_than_days: float | None = None, keep_bytes: float | None = None
) -> list[Cache]:
    """Those that may go: not used for some days, or beyond a size in all, oldest first.

    A cache of a run that goes on stays.
    """
    now, going, full = time.time(), [], False
    kept = sum(cache.size for cache in caches if cache.running)
    for cache in caches:
        if cache.running:
            continue
        old = older_than_days is not None and now - cache.used > older_than_days * 86_400
        # what is longer unused than one that goes goes too
        full = full or (keep_bytes is not None and kept + cache.size > keep_bytes)
        if old or full:
            going.append(cache)
        else:
            kept += cache.size
    return going[::-1]


def remove(caches: list[Cache]) -> None:
    """Remove caches; one that is half removed is never taken for whole."""
    for cache in caches:
        aside = cache.folder.with_name(f".{cache.folder.name}.removed")
        cache.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
