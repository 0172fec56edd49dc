"""What `aift-ray cache` shows and does, and the limit that a run keeps."""

from __future__ import annotations

import json
import time
from pathlib import Path

from aift_ray.config import DataConfig
from aift_ray.config.cache_config import CacheConfig
from aift_ray.config.section import memory_bytes
from aift_ray.data.cache_index import Cache, doomed, found, remove
from aift_ray.data.cache_location import cache_folder
from aift_ray.runs import ray_sessions
from aift_ray.runs.terminal import console

# runs that a cache is told to be used by
_SHOWN = 3


def show(config: CacheConfig) -> None:
    """Print the caches, last used first."""
    place = cache_folder(DataConfig(cache_dir=config.cache_dir))
    caches = found(place)
    if config.as_json:
        print(json.dumps([_values(cache) for cache in caches], ensure_ascii=False, indent=1))
        return
    total = sum(cache.size for cache in caches)
    _say(f"{_number(caches)}, {_size(total)}, in {place}")
    for cache in caches:
        users = ", ".join(map(str, cache.users[:_SHOWN])) or "no run that is still there"
        further = len(cache.users) - _SHOWN
        users += f" and {further} more" if further > 0 else ""
        state = "; runs now" if cache.running else ""
        _say(f"  {cache.folder.name}  {_size(cache.size)}, used {_age(cache)} by {users}{state}")


def _say(text: str) -> None:
    console.print(text, markup=False)


def prune(config: CacheConfig, dry_run: bool, now: float) -> None:
    """Remove what the settings say, and sessions of Ray that are over; say what."""
    keep = None if config.keep_gb is None else config.keep_gb * 1e9
    place = cache_folder(DataConfig(cache_dir=config.cache_dir))
    going = doomed(found(place), config.older_than, keep)
    old = ray_sessions.over(now - 86_400 * (config.older_than or 0.0))
    what = "would go" if dry_run else "removed"
    for cache in going:
        _say(f"{what}: {cache.folder.name}, {_size(cache.size)}, used {_age(cache)}")
    for session in old:
        _say(f"{what}: {session}, a session of Ray that is over")
    if not dry_run:
        remove(going)
        ray_sessions.remove(old)
    _say(f"{_number(going)}, {_size(sum(cache.size for cache in going))} {what}")


def keep_limit(config: DataConfig, used: Path) -> list[str]:
    """Prune the caches beyond `data.cache_limit`, but for the one in use; what went, in words."""
    if config.cache_limit is None:
        return []
    others = [cache for cache in found(cache_folder(config)) if cache.folder.name != used.name]
    own = sum(file.stat().st_size for file in used.rglob("*") if file.is_file())
    going = doomed(others, keep_bytes=max(0, memory_bytes(config.cache_limit) - own))
    remove(going)
    freed = _size(sum(cache.size for cache in going))
    text = f"{_number(going)} ({freed}) beyond data.cache_limit removed"
    return [text] if going else []


def _values(cache: Cache) -> dict[str, object]:
    return {
        "folder": str(cache.folder),
        "bytes": cache.size,
        "used": cache.used,
        "used_by": [str(user) for user in cache.users],
        "running": cache.running,
    }


def _number(caches: list[Cache]) -> str:
    return f"{len(caches)} token cache{'s' if len(caches) != 1 else ''}"


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e7 else f"{number / 1e3:,.0f} kB"


def _age(cache: Cache) -> str:
    minutes = max(0.0, time.time() - cache.used) / 60
    if minutes < 120:
        return "a minute ago" if round(minutes) == 1 else f"{minutes:.0f} minutes ago"
    return f"{minutes / 1440:.0f} days ago" if minutes >= 2880 else f"{minutes / 60:.0f} hours ago"
