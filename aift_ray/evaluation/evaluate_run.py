"""`aift-ray evaluate` from its configuration to its results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from aift_ray.config import EvaluateConfig
from aift_ray.errors import AiftError, ConfigError, Interrupted, Problem, UserError
from aift_ray.evaluation import evaluation_results, html_report, judging, sample_log
from aift_ray.evaluation.evaluated_models import EvaluatedModel, find_candidates
from aift_ray.evaluation.evaluator import Evaluator, EvaluatorOptions, Sample, TaskItems
from aift_ray.evaluation.output_files import REPORT, SAMPLES, output_file
from aift_ray.evaluation.remote_model import RemoteEvaluator
from aift_ray.evaluation.training_data import TrainingData
from aift_ray.runs import terminal
from aift_ray.tasks import contamination
from aift_ray.tasks.contamination import Overlap, overlaps
from aift_ray.tasks.task_files import LoadedTask
from aift_ray.tasks.task_yaml import by_place
from aift_ray.utils.drivers import usable_gpus
from aift_ray.utils.quiet import quiet

# seconds between two lines of progress
_PROGRESS_S = 5.0


def run(
    config: EvaluateConfig,
    tasks: Sequence[LoadedTask],
    problems: Sequence[Problem] = (),
    dry_run: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate as `config` says; returns what results.json holds.

    Args:
        problems: what is wrong with the settings and tasks; the models are looked at all the same.
        notes: what a reader of the scores should know of the tasks.

    Raises:
        UserError: the input is wrong; nothing was started.
        Interrupted: by Ctrl-C; the same command goes on where it was.
    """
    output = output_file(config)
    problems = list(problems)
    candidates: list[EvaluatedModel] = []
    try:
        candidates = find_candidates(config, any(map(_answers_in_batches, tasks)))
    except UserError as error:
        problems += error.problems
    trained = None
    try:
        if config.training_data:
            trained = TrainingData(config.training_data, next(iter(candidates), None))
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(by_place(problems))
    _show_plan(config, candidates, tasks, output, notes)
    if dry_run:
        return {}
    overlap = _overlaps(config, tasks, trained) if trained else {}
    samples, further = _samples(config, candidates, tasks, output)
    notes = [*notes, *further]
    names = [each.name for each in candidates]
    asked = [loaded.task for loaded in tasks]
    found = evaluation_results.results(config, names, asked, samples.samples, notes, overlap)
    samples.finish([(name, loaded.task.name) for name in names for loaded in tasks])
    text = json.dumps(found, ensure_ascii=False, indent=1)
    _write(output.parent / REPORT, html_report.html(found, samples.samples))
    _write(output, text + "\n")
    _show_results(found, output)
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _overlaps(
    config: EvaluateConfig, tasks: Sequence[LoadedTask], trained: TrainingData
) -> dict[str, Overlap]:
    """How much of the tasks' rows stands in the training data; of tasks of the harness nothing."""
    terminal.console.print("looking for the rows of the tasks in the training data")
    looked = [loaded for loaded in tasks if not loaded.harness]
    fields = [[item.fields for item in loaded.items] for loaded in looked]
    found = overlaps(fields, trained.texts(), config.overlap_characters)
    return {loaded.task.name: each for loaded, each in zip(looked, found, strict=True)}


def _answers_in_batches(loaded: LoadedTask) -> bool:
    return bool(loaded.harness) or loaded.task.kind == "generate"


def _samples(
    config: EvaluateConfig,
    candidates: Sequence[EvaluatedModel],
    tasks: Sequence[LoadedTask],
    output: Path,
) -> tuple[sample_log.Record, list[str]]:
    """The samples of every model and task."""
    names = ("dtype", "base_url")
    settings = {name: getattr(config, name) for name in names}
    digests = {
        (candidate.name, loaded.task.name): sample_log.digest(candidate, loaded, settings)
        for candidate in candidates
        for loaded in tasks
    }
    kept = sample_log.Record(output, digests)
    if kept.resumed:
        terminal.console.print(f"resumed: {kept.resumed} answers are there already")
    what = "a single row: its intervals and tests say nothing of other rows"
    notes = [f"task {each.task.name}: {what}" for each in tasks if len(each.items) == 1]
    again = f"the same command with --output {output} goes on; what was answered is kept"
    try:
        for candidate in candidates:
            works = [kept.missing(candidate.name, loaded) for loaded in tasks]
            works = [work for work in works if work.items]
            progress = _Progress(candidate.name, sum(len(work.items) for work in works))
            if works:
                for part in _computed(config, candidate, works, notes):
                    kept.add(part)
                    progress.add(len(part))
        models = [candidate.name for candidate in candidates]
        asked = [loaded.task for loaded in tasks]
        notes += judging.judge(
            config, models, asked, kept.samples, kept.add, lambda *who: _Progress(*who).add
        )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {again}", 130) from None
    except AiftError as error:
        if error.exit_status != 1:
            raise
        raise AiftError(f"{error}\n      {again}") from error
    finally:
        kept.close()
    return kept, notes


def _computed(
    config: EvaluateConfig, candidate: EvaluatedModel, works: list[TaskItems], notes: list[str]
) -> Iterator[list[Sample]]:
    """The samples of one model, as they come."""
    if config.base_url:
        remote = RemoteEvaluator(config, candidate.name)
        yield from remote.run(works)
        return
    address = os.environ.get("RAY_ADDRESS")
    gpus = 0 if address else usable_gpus()
    number = config.num_workers or max(1, gpus)
    if number == 1 and not address:
        options = EvaluatorOptions(config.dtype, config.tokens_per_batch, config.max_concurrent)
        evaluator = Evaluator(candidate, options, gpu=gpus > 0)
        yield from evaluator.run(works)
        notes += evaluator.notes()
        return
    from aift_ray.ray_backend import actors, cluster

    quiet()
    with cluster.cluster() as resources:
        on_gpu = resources.get("GPU", 0) >= 1
        number = config.num_workers or int(resources.get("GPU", 0)) or 1
        _check_room(number, resources, on_gpu)
        cpus = max(1, int(resources["CPU"]) // number) if not on_gpu else 1
        options = EvaluatorOptions(
            config.dtype, config.tokens_per_batch, config.max_concurrent, cpus
        )
        make = partial(Evaluator, candidate, options, on_gpu)
        yield from actors.stream(make, _shares(works, number), cpus, int(on_gpu), notes)


def _check_room(number: int, resources: dict[str, float], on_gpu: bool) -> None:
    kind = "GPU" if on_gpu else "CPU"
    there = int(resources.get(kind, 0))
    if number > there:
        what = f"{number} workers need {number} {kind}s, the cluster has {there}"
        raise ConfigError([Problem("num_workers", what, f"give --num-workers {there}")])


def _shares(works: Sequence[TaskItems], number: int) -> list[list[TaskItems]]:
    """Every so-manieth item to each worker, those of like length to different ones."""
    shares: list[list[TaskItems]] = []
    for first in range(number):
        share = []
        for work in works:
            if work.harness:
                share += [work] if first == 0 else []
                continue
            items = sorted(work.items, key=lambda item: len(item.shown_prompt))
            if items[first::number]:
                share.append(TaskItems(work.task, items[first::number]))
        shares.append(share)
    return [share for share in shares if share]


class _Progress:
    """Lines of progress, and the time that is left once it can be told."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._done, self._began, self._told = 0, time.monotonic(), time.monotonic()
        # the first answers wait for workers and weights, which says nothing of those that are left
        self._first = (0.0, 0)

    def add(self, number: int) -> None:
        self._done += number
        now = time.monotonic()
        if not self._first[1]:
            self._first = (now, self._done)
        if now - self._told < _PROGRESS_S and self._done < self._total:
            return
        self._told = now
        since, first = self._first
        after = ""
        if first < self._done < self._total:
            left = (now - since) / (self._done - first) * (self._total - self._done)
            after = f", {left:.0f} s left"
        spent = now - self._began
        text = f"{self._name}: {self._done}/{self._total} answers, {spent:.0f} s{after}"
        terminal.console.print(text, markup=False)


def _show_plan(
    config: EvaluateConfig,
    candidates: Sequence[EvaluatedModel],
    tasks: Sequence[LoadedTask],
    output: Path,
    notes: Sequence[str],
) -> None:
    rows = [("models", ", ".join(each.name for each in candidates))]
    for loaded in tasks:
        task = loaded.task
        how = f"{len(loaded.items):,} rows, {task.kind}, {', '.join(task.computed)}"
        if task.kind != "text":
            how += f", {task.few_shot.number} examples" + ", chat template" * task.chat
        rows.append((f"task {task.name}", how))
    if config.base_url:
        rows.append(("API", f"{config.base_url}, which answers"))
    if config.judge_url:
        rows.append(("judge", f"{config.judge_model} at {config.judge_url}, which answers"))
    rows += [("note", note) for note in notes]
    rows.append(("output", str(output)))
    terminal.table("plan", rows)


def _show_scores(heads: list[str], rows: list[list[str]]) -> None:
    """A table, or a list where the terminal is too narrow for one."""
    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) <= terminal.console.width:
        grid = Table(title="scores", title_justify="left", box=None, padding=(0, 1))
        for head in heads:
            grid.add_column(head)
        for row in rows:
            grid.add_row(*map(Text, row))
        terminal.console.print(grid)
        return
    print_line = partial(terminal.console.print, markup=False)
    print_line(f"scores: {', '.join(heads[2:])}")
    for task, score, model, value, *verdict in rows:
        if task:
            print_line(f" task {task}")
        if score:
            print_line(f"  {score}")
        print_line(f"    {model}: {value}")
        for each in filter(None, verdict):
            print_line(f"      {each}")


def _show_results(found: dict[str, Any], output: Path) -> None:
    _show_scores(*evaluation_results.table(found))
    for task, overlap in found["contamination"].items():
        told = contamination.told(overlap)
        terminal.console.print(f"task {task}: {told}", markup=False)
    for note in found["notes"]:
        terminal.console.print(f"note: {note}", style="yellow", markup=False)
    terminal.table(
        "written",
        [
            ("results", str(output)),
            ("samples", str(output.parent / SAMPLES)),
            ("report", str(output.parent / REPORT)),
        ],
    )
