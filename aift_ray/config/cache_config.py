"""Every setting of `aift-ray cache`, declared once."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from aift_ray.config.section import Settings, setting
from aift_ray.errors import Problem


class CacheConfig(Settings):
    """Which token caches are looked at, and which of them go."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "older_than": "older-than",
        "keep_gb": "keep-gb",
        "cache_dir": "cache-dir",
        "as_json": "json",
    }

    older_than: Annotated[float, Field(ge=0)] | None = setting(
        None, "prune: delete caches that were not used for this many days"
    )
    keep_gb: Annotated[float, Field(ge=0)] | None = setting(
        None, "prune: keep the most recently used caches up to this many GB"
    )
    cache_dir: str | None = setting(
        None, "folder of the caches, as --data.cache_dir; default: ~/.cache/aift_ray/tokens"
    )
    as_json: bool = setting(False, "list: print JSON, for scripts")

    def refused(self, action: str) -> list[Problem]:
        """What `list` or `prune` can't do with these settings."""
        if action == "prune" and self.older_than is None and self.keep_gb is None:
            remedy = "give --older-than DAYS, --keep-gb N, or both"
            return [Problem("cache prune", "nothing says what is to go", remedy)]
        if action == "list" and (self.older_than, self.keep_gb) != (None, None):
            what = "--older-than and --keep-gb are for prune"
            return [Problem("cache list", what, "use aift-ray cache prune")]
        return []
