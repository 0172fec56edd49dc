"""Look at a machine or cluster: `python -m aift_ray.doctor`, the same as `aift-ray doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aift_ray.utils.exit_status import guarded

DESCRIPTION = """Look at this machine, or at every node of the cluster of RAY_ADDRESS: drivers, CUDA
and torch, GPU memory, NCCL, shared memory, ports, storage, package versions, the Hub, clocks.

With --dry-run it looks at this machine alone, and writes nothing."""
EPILOG = """exit status: 0 all well; 1 something to mend, each with its remedy; 2 wrong usage."""


def run(argv: Sequence[str]) -> int:
    """Parse, look; the exit status."""
    from aift_ray.commandline import parse
    from aift_ray.config import DoctorConfig

    command = parse(argv, DoctorConfig, "doctor", DESCRIPTION, EPILOG)
    from aift_ray.ray_backend import cluster_doctor

    return cluster_doctor.run(command.config, command.dry_run)


def main() -> None:
    """Entry point of `python -m aift_ray.doctor`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
