"""What fits a machine, and how fast: `python -m aift_ray.plan`, the same as `aift-ray plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aift_ray.utils.exit_status import guarded

DESCRIPTION = """Memory and speed of training and serving a model on given GPUs, by arithmetic.

Every strategy in one table, what limits it, the settings that fit and the command to type. Nothing
is started or downloaded; this machine needs no GPU."""
EPILOG = """exit status: 0 planned, whether it fits or not; 2 the input is wrong."""


def run(argv: Sequence[str]) -> int:
    """Parse, plan; the exit status."""
    from aift_ray.commandline import parse
    from aift_ray.config import PlanConfig

    command = parse(argv, PlanConfig, "plan", DESCRIPTION, EPILOG)
    from aift_ray.runs import plan_report

    return plan_report.run(command.config)


def main() -> None:
    """Entry point of `python -m aift_ray.plan`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
