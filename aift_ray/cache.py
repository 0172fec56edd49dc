"""List and prune token caches: `python -m aift_ray.cache`, the same as `aift-ray cache`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.exit_status import guarded

ACTIONS = ("list", "prune")
DESCRIPTION = """List token caches with size, age and the runs that use them, or prune them:

  aift-ray cache list
  aift-ray cache prune --older-than DAYS --keep-gb N

A cache holds the token ids of the rows of a run, and is made again where it is missing. They are
in ~/.cache/aift_ray/tokens, under XDG_CACHE_HOME where that is set, or in --data.cache_dir. That
of a run that goes on is never pruned. Old sessions of a Ray that this program has started, which
are logs, go with prune too. --dry-run shows what would go."""
EPILOG = """exit status: 0 done; 2 the input is wrong."""


def run(argv: Sequence[str]) -> int:
    """Parse, list or prune; the exit status."""
    from aift_ray.commandline import parse
    from aift_ray.config.cache_config import CacheConfig

    action, *rest = argv or ("--help",)
    if action.startswith("-"):
        action, rest = "list", list(argv) or ["--help"]
    if action not in ACTIONS:
        what, remedy = "there is no such action", f"give one of {', '.join(ACTIONS)}"
        raise ConfigError([Problem(f"cache {action}", what, remedy)])
    command = parse(rest, CacheConfig, "cache", DESCRIPTION, EPILOG)
    config = command.config
    problems = config.refused(action)
    if problems:
        raise ConfigError(problems)
    from aift_ray.runs import cache_admin

    if action == "prune":
        cache_admin.prune(config, command.dry_run, time.time())
    else:
        cache_admin.show(config)
    return 0


def main() -> None:
    """Entry point of `python -m aift_ray.cache`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
