"""Serve a model over HTTP: `python -m aift_ray.serve`, the same as `aift-ray serve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.exit_status import guarded

if TYPE_CHECKING:
    from aift_ray.config import ServeConfig

DESCRIPTION = """Serve a model and its adapters behind an OpenAI-compatible API on Ray Serve.

Flags win over --config files, files over defaults. The shipped model is {model}."""
EPILOG = """exit status: 0 stopped by Ctrl-C or SIGTERM, with all requests answered; 1 failed;
2 the input is wrong."""


def run(argv: Sequence[str]) -> int:
    """Parse, serve until stopped; the exit status."""
    _check_models(argv)
    from aift_ray.commandline import parse
    from aift_ray.config import SHIPPED_MODEL, ServeConfig

    description = DESCRIPTION.format(model=SHIPPED_MODEL)
    command = parse(argv, ServeConfig, "serve", description, EPILOG, _check)
    from aift_ray.ray_backend import serve_run

    serve_run.run(command.config, command.dry_run)
    return 0


def _check_models(argv: Sequence[str]) -> None:
    number = sum(part == "--model" or part.startswith("--model=") for part in argv)
    if number > 1:
        what = f"is given {number} times, and a server has one base model"
        remedy = "give adapters on it as --adapter NAME=FOLDER; for another base start a server"
        raise ConfigError([Problem("--model", what, remedy)])


def _check(config: ServeConfig) -> None:
    from aift_ray.launch import early_checks

    early_checks.check_server(config)


def main() -> None:
    """Entry point of `python -m aift_ray.serve`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
