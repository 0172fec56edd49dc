"""Make one model of several: `python -m aift_ray.merge`, the same as `aift-ray merge`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from aift_ray.errors import ConfigError
from aift_ray.utils.exit_status import guarded

DESCRIPTION = """Make one model of several with the same architecture and tokenizer.

task_arithmetic with two models adds what one has learned to the other: a "chat vector" is --base B
--model JAPANESE --model CHAT, both made of B. One tensor of each model is in memory at a time.
Flags win over --config files, files over defaults."""
EPILOG = "exit status: 0 done; 1 failed; 2 the input is wrong; 130 stopped by Ctrl-C."


def run(argv: Sequence[str]) -> int:
    """Parse, merge; the exit status."""
    from aift_ray.commandline import drafted, given
    from aift_ray.config import MergeConfig

    command = given(argv, MergeConfig, "merge", DESCRIPTION, EPILOG)
    draft = drafted(MergeConfig, command.values)
    config, problems = draft.config, [*command.problems, *draft.problems]
    if config is None:
        raise ConfigError(problems)
    from aift_ray.launch import early_checks

    usable = early_checks.check_merge(config, problems)
    # transformers warns of its own deprecated names
    warnings.simplefilter("ignore", FutureWarning)
    from aift_ray.conversion import merge_run

    merge_run.run(config, command.dry_run, problems, usable)
    return 0


def main() -> None:
    """Entry point of `python -m aift_ray.merge`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
