"""Score models on tasks: `python -m aift_ray.evaluate`, the same as `aift-ray evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aift_ray.errors import ConfigError
from aift_ray.utils.exit_status import guarded

DESCRIPTION = """Score models and adapters on tasks, with intervals and tests of their differences.

A task is a built-in name, a YAML file, or a data file of rows. The models are compared with the
first one. Flags win over --config files, files over defaults. The shipped model is
{model}."""
EPILOG = """exit status: 0 done; 1 failed; 2 the input is wrong; 130 stopped by Ctrl-C: the same
command with the same --output resumes the evaluation."""


def run(argv: Sequence[str]) -> int:
    """Parse, evaluate; the exit status."""
    from aift_ray.commandline import drafted, given
    from aift_ray.config import SHIPPED_MODEL, EvaluateConfig

    description = DESCRIPTION.format(model=SHIPPED_MODEL)
    command = given(argv, EvaluateConfig, "evaluate", description, EPILOG)
    draft = drafted(EvaluateConfig, command.values)
    config, problems = draft.config, [*command.problems, *draft.problems]
    if config is None:
        raise ConfigError(problems)
    from aift_ray.evaluation import evaluation_checks
    from aift_ray.launch import early_checks
    from aift_ray.tasks.task_files import read_tasks

    tasks, of_tasks = read_tasks(config, config.judged_scores())
    tasks, notes = evaluation_checks.without_texts(config, tasks)
    names = {problem.where for problem in draft.problems}
    problems += of_tasks + evaluation_checks.check(config, names, tasks, whole=not of_tasks)
    early_checks.check_evaluation(config, problems)
    from aift_ray.evaluation import evaluate_run as evaluation
    from aift_ray.utils.quiet import quiet

    quiet()
    evaluation.run(config, tasks, problems, command.dry_run, notes)
    return 0


def main() -> None:
    """Entry point of `python -m aift_ray.evaluate`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
