"""Sweep over training runs: `python -m aift_ray.tune`, the same as `aift-ray tune`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aift_ray.utils.exit_status import guarded

DESCRIPTION = """Sweep over training runs on Ray Tune.

The YAML of --config is that of a training run, with spaces in place of values:
  {uniform: [a, b]}  {loguniform: [a, b]}  {randint: [a, b]}  {choice: [...]}  {grid: [...]}
Every flag is a fixed value. Flags win over --config files, files over defaults."""
EPILOG = """exit status: 0 done; 1 no trial ran to its end; 2 the input is wrong; 75 stopped by
SIGTERM; 130 stopped by Ctrl-C; after both, the same command with --resume goes on."""


def run(argv: Sequence[str]) -> int:
    """Parse, sweep; the exit status."""
    from aift_ray.commandline import given
    from aift_ray.config import SweepConfig

    found = given(argv, SweepConfig, "tune", DESCRIPTION, EPILOG)
    from aift_ray.launch import early_checks

    early_checks.check_sweep(found)
    from aift_ray.launch import sweep_run

    sweep_run.run(found)
    return 0


def main() -> None:
    """Entry point of `python -m aift_ray.tune`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
