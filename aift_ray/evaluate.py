"""Score models on tasks: `python -m aift_ray.evaluate`, the same as `aift-ray evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aift_ray.commandline import guarded
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.tasks.task_files import LoadedTask

DESCRIPTION = """Score models and adapters on tasks, with intervals and tests of their differences.

Tasks are built-in names, YAML files, or data files of rows; the first model is the one that the
others are compared with. Flags win over --config files, files over defaults. The shipped model is
{model}."""
EPILOG = """exit status: 0 done; 1 failed; 2 the input is wrong; 130 stopped by Ctrl-C: the same
command with the same --output goes on where it was."""


def run(argv: Sequence[str]) -> int:
    """Parse, evaluate; the exit status."""
    from aift_ray.commandline import parse
    from aift_ray.config import SHIPPED_MODEL, EvaluateConfig

    description = DESCRIPTION.format(model=SHIPPED_MODEL)
    command = parse(argv, EvaluateConfig, "evaluate", description, EPILOG)
    from aift_ray.errors import DataError
    from aift_ray.launch import early_checks
    from aift_ray.tasks.task_files import load_tasks

    wrong: list[Problem] = []
    tasks: list[LoadedTask] = []
    try:
        tasks = load_tasks(command.config, command.config.judged_scores())
    except DataError as error:
        wrong = error.problems
    early_checks.check_evaluation(command.config, wrong)
    from aift_ray.evaluation import evaluate_run as evaluation
    from aift_ray.utils.quiet import quiet

    quiet()
    evaluation.run(command.config, tasks, command.dry_run)
    return 0


def main() -> None:
    """Entry point of `python -m aift_ray.evaluate`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
