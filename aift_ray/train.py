"""Fine-tune a model: `python -m aift_ray.train`, the same as `aift-ray train`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from aift_ray.errors import AiftError, UserError

DESCRIPTION = """Fine-tune a Japanese language model on Ray Train workers.

Flags win over --config files, files over defaults. The shipped model is {model}."""
EPILOG = """exit status: 0 done; 1 failed; 2 the input is wrong; 75 stopped by SIGTERM with a
checkpoint; 130 stopped by Ctrl-C with a checkpoint."""


def run(argv: Sequence[str]) -> int:
    """Parse, train; the exit status."""
    from aift_ray import commandline
    from aift_ray.config import SHIPPED_MODEL

    command = commandline.parse(argv, "train", DESCRIPTION.format(model=SHIPPED_MODEL), EPILOG)
    from aift_ray.launch import training

    training.run(command.config, command.dry_run)
    return 0


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call a verb; its errors become one message and the contract's exit status."""
    try:
        return run(argv)
    except AiftError as error:
        label = "error" if isinstance(error, UserError) or error.exit_status == 1 else "note"
        print(f"{label}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted before training began", file=sys.stderr)
        return 130


def main() -> None:
    """Entry point of `python -m aift_ray.train`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
