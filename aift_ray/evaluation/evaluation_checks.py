"""What keeps an evaluation from starting, told without a library that loads models."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aift_ray.config import EvaluateConfig
from aift_ray.errors import Problem
from aift_ray.evaluation import api_probe, output_files
from aift_ray.tasks import sandbox, score_libraries
from aift_ray.tasks.task_files import LoadedTask

WIN_RATE, GRADE = "judge_win_rate", "judge_grade"


def check(
    config: EvaluateConfig, wrong: Collection[str], tasks: Sequence[LoadedTask], whole: bool
) -> list[Problem]:
    """Mistakes in the settings together with the tasks; APIs are asked whether they answer.

    Args:
        wrong: names of settings that are at their defaults, as what was given is wrong.
        whole: the tasks are all that were named; False: others are wrong, and told already.
    """
    problems = output_files.check(output_files.output_file(config), config.overwrite)
    problems += _judged(config, tasks, whole)
    named = config.sandbox if whole or any(each.task.coded for each in tasks) else None
    problems += sandbox.refused(named, tasks) if "sandbox" not in wrong else []
    problems += score_libraries.missing(tasks)
    if config.base_url:
        problems += [problem for each in tasks for problem in _by_api(each)]
        problems += api_probe.models(config, tasks)
    if config.judge_url:
        problems += api_probe.judge(config)
    return problems


def without_texts(
    config: EvaluateConfig, tasks: Sequence[LoadedTask]
) -> tuple[list[LoadedTask], list[str]]:
    """The tasks that base_url can score, where a file has texts among other rows; what is left out.

    A task of texts that was named as such stays, and is refused.
    """
    left = [each for each in tasks if config.base_url and each.mixed and each.task.kind == "text"]
    notes = [
        f"task {each.task.name} is left out ({len(each.items)} texts): no API gives the "
        "probability of a first token"
        for each in left
    ]
    return [each for each in tasks if each not in left], notes


def _judged(config: EvaluateConfig, tasks: Sequence[LoadedTask], whole: bool) -> list[Problem]:
    """What keeps the tasks from being judged as they ask."""
    models = len(config.candidates()) + len(config.adapters)
    found = []
    for each in tasks:
        judged = each.task.judged
        if judged and not config.judge_url:
            what = f"{judged[0]} needs a model that judges"
            found.append(Problem(each.where(), what, "give --judge-url and --judge-model"))
        if WIN_RATE in judged and models == 1:
            what = f"{WIN_RATE} compares with the first of several models, and one is given"
            found.append(Problem(each.where(), what, "give another --model or --adapter"))
    if whole and config.judge_url and not any(each.task.judged for each in tasks):
        what = "no task has a score that is judged"
        found.append(Problem("judge_url", what, f"name {GRADE} or {WIN_RATE} in a task's scores"))
    return found


def _by_api(loaded: LoadedTask) -> list[Problem]:
    """What an API can't do for a task."""
    task, found = loaded.task, []
    if loaded.harness:
        what = "tasks of lm-evaluation-harness run on models that are loaded here"
        remedy = "give model folders in place of --base-url"
        found.append(Problem(loaded.where(), what, remedy))
    if task.kind == "choice" and task.chat:
        what = "choices after a chat template's prompt can't be scored over an API"
        found.append(Problem(loaded.where("chat"), what, "give --chat false, or a model folder"))
    if task.kind == "text" or "accuracy_normalized" in task.computed:
        what = "texts and accuracy_normalized need the probability of a first token, which no API "
        remedy = "leave it out, or give a model folder"
        found.append(Problem(loaded.where(), what + "gives", remedy))
    return found
