"""Where token caches are kept."""

from __future__ import annotations

import os
from pathlib import Path

from aift_ray.config import DataConfig


def cache_folder(config: DataConfig) -> Path:
    """The folder of token caches: `data.cache_dir`, else one under XDG_CACHE_HOME or ~/.cache."""
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "aift_ray" / "tokens"
