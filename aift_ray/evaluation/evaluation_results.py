"""The scores of an evaluation: results.json, and the table that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from aift_ray import __version__
from aift_ray.config import EvaluateConfig
from aift_ray.config.tasks_config import LOWER_IS_BETTER
from aift_ray.evaluation.evaluator import Sample
from aift_ray.tasks.contamination import SEEN, Overlap
from aift_ray.tasks.scores import computed_by
from aift_ray.tasks.statistics import Difference, difference, estimate, holm
from aift_ray.tasks.task import Task

Samples = Mapping[tuple[str, str], Mapping[int, Sample]]


def results(
    config: EvaluateConfig,
    models: Sequence[str],
    tasks: Sequence[Task],
    samples: Samples,
    notes: Sequence[str],
    overlap: Mapping[str, Overlap] = MappingProxyType({}),
) -> dict[str, Any]:
    """What results.json holds; samples get their overlap.

    Args:
        overlap: of the tasks' rows with the training data, where it was looked for.
    """
    scores = {
        task.name: {
            model: _scores(config, task, samples[model, task.name], overlap.get(task.name))
            for model in models
        }
        for task in tasks
    }
    names = {name for task in tasks for name in task.computed}
    return {
        "version": __version__,
        "settings": config.model_dump(
            mode="json", exclude={"overwrite", "api_key_file", "judge_key_file"}
        ),
        "models": list(models),
        "tasks": {task.name: task.model_dump(mode="json") for task in tasks},
        "scores": scores,
        "computed_by": {name: by for name in sorted(names) if (by := computed_by(name))},
        "contamination": {
            task: each.described(config.overlap_characters) for task, each in overlap.items()
        },
        "differences": _differences(config, models, tasks, samples),
        "notes": list(notes),
    }


def _scores(
    config: EvaluateConfig, task: Task, rows: Mapping[int, Sample], overlap: Overlap | None
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    shares = overlap.shares if overlap else ()
    for at, share in enumerate(shares):
        rows[at]["overlap"] = share
    # rows that are too short to be found may have been seen
    new = [at for at, share in enumerate(shares) if share is not None and share < SEEN]
    how = (config.confidence, config.resamples, config.seed)
    for name in task.computed:
        table = {at: rows[at]["scores"][name] for at in sorted(rows)}
        found[name] = asdict(estimate(name, list(table.values()), *how))
        if overlap and overlap.seen and new:
            unseen = [table[at] for at in new]
            found[name]["unseen"] = asdict(estimate(name, unseen, *how))
    answers = list(rows.values())
    # the harness tells nothing of how an answer ended
    if task.kind == "generate" and "finish" in answers[0]:
        cut = sum(each["finish"] == "length" for each in answers) / len(answers)
        length = sum(len(each["written"]) for each in answers) / len(answers)
        repeated = sum(repetition(each["written"]) for each in answers) / len(answers)
        found["answers"] = {"characters": length, "cut_off": cut, "repeated": repeated}
    return found


def repetition(text: str, size: int = 8) -> float:
    """Share of a text's pieces of `size` characters that stood in it before."""
    pieces = [text[at : at + size] for at in range(len(text) - size + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def _differences(
    config: EvaluateConfig, models: Sequence[str], tasks: Sequence[Task], samples: Samples
) -> list[dict[str, Any]]:
    """Each further model against the first, by the first score of each task."""
    keys: list[tuple[str, str, str]] = []
    found: list[Difference] = []
    for task in tasks:
        name, first = task.computed[0], samples[models[0], task.name]
        for model in models[1:]:
            rows = samples[model, task.name]
            a, b = ([part[at]["scores"][name] for at in sorted(part)] for part in (first, rows))
            keys.append((task.name, model, name))
            found.append(difference(name, a, b, config.confidence, config.resamples, config.seed))
    adjusted = holm([each.p for each in found])
    level = 1 - config.confidence
    listed = []
    for (task_name, model, name), each, p in zip(keys, found, adjusted, strict=True):
        corrected = replace(each, p_adjusted=p)
        better = corrected.better(name, level)
        listed.append(
            {"task": task_name, "model": model, "against": models[0], "score": name}
            | asdict(corrected)
            | {"better": better}
        )
    return listed


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the printed table: a row for each score and model."""
    models = found["models"]
    percent = f"{100 * found['settings']['confidence']:g}%"
    heads = ["task", "score", "model", f"value [{percent}]"]
    heads += [f"against {models[0]}"] if len(models) > 1 else []
    verdicts = {(d["task"], d["model"], d["score"]): d for d in found["differences"]}
    rows = []
    for task, by_model in found["scores"].items():
        names = [name for name in by_model[models[0]] if name != "answers"]
        for name in names:
            for model in models:
                first = model == models[0]
                row = [task if first and name == names[0] else "", name if first else "", model]
                row.append(shown(name, by_model[model][name]))
                verdict = verdicts.get((task, model, name))
                rows.append([*row, judged(name, verdict) if verdict else ""][: len(heads)])
    return heads, rows


def shown(name: str, value: Mapping[str, Any]) -> str:
    """A score with its interval, and that of the rows that were not trained on."""
    text = f"{_number(name, value['value'])} [{_range(name, value)}]"
    return text + (f", unseen rows {shown(name, value['unseen'])}" if "unseen" in value else "")


def judged(name: str, verdict: Mapping[str, Any]) -> str:
    """A difference, and what may be said of it."""
    words = {True: "better", False: "worse", None: "no clear difference"}
    sign = "+" if verdict["value"] >= 0 else ""
    value = f"{sign}{_number(name, verdict['value'])}"
    return f"{value}, p {verdict['p_adjusted']:.2g}: {words[verdict['better']]}"


def _range(name: str, value: Mapping[str, Any]) -> str:
    return f"{_number(name, value['low'])}, {_number(name, value['high'])}"


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if name in LOWER_IS_BETTER else f"{100 * value:.1f}"
