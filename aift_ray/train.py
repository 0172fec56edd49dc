"""Fine-tune a model: `python -m aift_ray.train`, the same as `aift-ray train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aift_ray.utils.exit_status import guarded, leave

DESCRIPTION = """Fine-tune a Japanese language model on Ray Train workers.

Flags win over --config files, files over defaults. The shipped model is {model}."""
EPILOG = """exit status: 0 done; 1 failed; 2 the input is wrong; 75 stopped by SIGTERM with a
checkpoint; 130 stopped by Ctrl-C with a checkpoint."""


def run(argv: Sequence[str]) -> int:
    """Parse, train; the exit status."""
    from aift_ray.commandline import drafted, given
    from aift_ray.config import SHIPPED_MODEL, RunConfig

    description = DESCRIPTION.format(model=SHIPPED_MODEL)
    command = given(argv, RunConfig, "train", description, EPILOG)
    from aift_ray.launch import early_checks

    # torch and Ray take many seconds to load: what is wrong without them is told first
    config = early_checks.check_drafted(drafted(RunConfig, command.values), command.problems)
    from aift_ray.runs import run_dir_check, supervise, worker_env

    started, attempt = supervise.process_start(), None
    if not command.dry_run and supervise.possible(config):
        # named by the time; later attempts go on in it
        folder = run_dir_check.output_folder(config)
        config.output_dir = str(folder)
        worker_env.set_here(config)
        # what follows is done in a child; the command ends with the child's exit status
        attempt = supervise.fork(config, folder, started)
    from aift_ray.launch import training_run

    training_run.run(config, command.dry_run, started, attempt)
    return 0


def main() -> None:
    """Entry point of `python -m aift_ray.train`."""
    leave(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
