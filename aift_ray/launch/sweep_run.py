"""A sweep from its configuration to its best trial."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from aift_ray.commandline import ParsedSettings
from aift_ray.config import RunConfig, SweepConfig
from aift_ray.engine.metrics import replace
from aift_ray.errors import ConfigError, Interrupted, Problem, TrainingError, UserError
from aift_ray.ray_backend import cluster, node_checks
from aift_ray.ray_backend.ray_tokenize import encode_of
from aift_ray.ray_backend.tune_runner import Sweep, Trials, fit
from aift_ray.runs import preview, run_dir, run_dir_check, terminal
from aift_ray.runs.execution import exit_status, stop_signals
from aift_ray.runs.prepare import Preparation, prepare
from aift_ray.runs.worker_resources import asked as asks
from aift_ray.runs.worker_resources import check_resources, gpus_used, local_gpus
from aift_ray.sweep import metric as sweep_metric
from aift_ray.sweep import plots, results
from aift_ray.sweep import trial as sweep_trial
from aift_ray.sweep.search import search
from aift_ray.sweep.space import Space, separate, trial_config
from aift_ray.sweep.trial import Trial

_SWEEP = "sweep.yaml"
_STATE = ".ray"
_RESULTS = (results.CSV, results.PARQUET, results.BEST, plots.PLOTS)
_OWN = (_SWEEP, sweep_trial.TRIALS, *_RESULTS, _STATE)
# a sweep that is gone on with may have more trials, and more at once
_MAY_CHANGE = ("num_samples", "max_concurrent")


def run(given: ParsedSettings) -> None:
    """Run the trials of a sweep and tell which is best.

    Raises:
        UserError: the input is wrong; nothing was started.
        Interrupted: stopped on request; what has ended is kept.
        TrainingError: no trial ran to its end, or Ray Tune failed.
    """
    config, space = separate(given.values, given.problems)
    folder = run_dir_check.output_folder(config)
    kept = _kept(config, folder, given.values)
    with ExitStack() as stack:
        joined = stack.enter_context(cluster.cluster()) if "RAY_ADDRESS" in os.environ else None
        there = int(joined.get("GPU", 0)) if joined else local_gpus(config)
        devices = gpus_used(config, there)
        sweep_metric.check_comparable(config, space)
        fixed = _decided(config, space, folder, devices)
        configs = [trial_config(space, corner, fixed) for corner in space.corners()]
        if joined:
            node_checks.check(configs, devices > 0)
        prepared = _prepared(config, configs, folder, devices)
        searching = search(space, config.tune)
        resources = joined or {"CPU": float(os.cpu_count() or 1), "GPU": float(there)}
        settled = [*configs, *(run.job.config for run in prepared)]
        concurrent = _concurrent(config, settled, devices, searching.total, resources)
        sweep = Sweep(
            folder=folder,
            config=config.tune,
            search=searching,
            fixed=fixed,
            gpu=devices > 0,
            devices=devices,
            concurrent=concurrent,
            steps=max(one.steps for one in prepared),
            grace=sweep_metric.grace(config.tune, configs),
        )
        _show_plan(sweep, space, configs, prepared)
        if given.dry_run:
            preview.show_preview(prepared[0])
            return
        if joined is None:
            stack.enter_context(cluster.cluster())
        _start(config, folder, given.values)
        _run(sweep, kept, space.names)


def _kept(config: SweepConfig, folder: Path, values: dict[str, Any]) -> list[Trial]:
    """The trials of the sweep that is gone on with, where the folder is fit to be used."""
    problems = run_dir.check(config, folder)
    if problems:
        raise ConfigError(problems)
    if not config.resume:
        return []
    path = folder / _SWEEP
    if not path.is_file():
        terminal.console.print("no sweep to go on with: starting from the beginning")
        return []
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = _lasting(values)
    differing = [name for name in sorted(before.keys() | now) if before.get(name) != now.get(name)]
    if differing:
        what = f"the sweep in {folder} was started with another value"
        remedy = f"{_SWEEP} there holds it; give the same settings, or another --output-dir"
        raise ConfigError([Problem(name, what, remedy) for name in differing])
    trials = sweep_trial.load(folder)
    ended = sum(trial.settled for trial in trials)
    terminal.console.print(f"going on with a sweep of which {ended} trials have ended")
    return trials


def _lasting(values: dict[str, Any]) -> dict[str, Any]:
    """What must stay when a sweep is gone on with, as YAML would give it back."""
    left = {n: v for n, v in values.items() if n not in ("resume", "overwrite", "output_dir")}
    if isinstance(tune := left.get("tune"), dict):
        left["tune"] = {name: value for name, value in tune.items() if name not in _MAY_CHANGE}
    plain: dict[str, Any] = json.loads(json.dumps(left))
    return plain


def _decided(
    config: SweepConfig, space: Space, folder: Path, devices: int
) -> dict[str, dict[str, Any]]:
    """Settings that are the sweep's to decide: a trial's share of the devices, and its store."""
    ray: dict[str, Any] = {}
    named = config.ray.num_workers is not None or config.training.ddp
    if not named and "ray.num_workers" not in space.names:
        ray["num_workers"] = max(1, devices // (config.tune.max_concurrent or max(devices, 1)))
    if config.ray.storage_path:
        ray["storage_path"] = f"{config.ray.storage_path.rstrip('/')}/{folder.name}"
    # a trial's configuration is run from any folder
    paths = {
        name: [str(Path(path).expanduser().absolute()) for path in getattr(config.data, name)]
        for name in ("train_files", "eval_files")
        if f"data.{name}" not in space.names
    }
    return {"ray": ray, "data": paths, "evaluation": sweep_metric.tasks(config, space)}


def _prepared(
    config: SweepConfig, configs: list[RunConfig], folder: Path, devices: int
) -> list[Preparation]:
    """The runs at the ends of the space that differ in model or rows; their tokens are made.

    Raises:
        UserError: what is wrong with any of them.
    """
    found: dict[str, Preparation] = {}
    problems: dict[str, Problem] = {}
    tried = set()
    for each in configs:
        steps = (each.training.max_steps, each.training.num_epochs, each.ray.num_workers)
        key = repr((each.model, each.method, each.data, each.lora.target_modules, steps))
        if key in tried:
            continue
        tried.add(key)
        try:
            most = each.worker_range(devices)[1]
            found[key] = prepare(each, folder, most, devices > 0, None, encode=encode_of(each.data))
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if not problems:
        sweep_metric.check(config.tune, found.values())
    if problems:
        raise ConfigError(problems.values())
    return list(found.values())


def _concurrent(
    config: SweepConfig,
    configs: list[RunConfig],
    devices: int,
    trials: int,
    resources: dict[str, float],
) -> int:
    """How many trials at once the cluster holds, and the user wants.

    Raises:
        ConfigError: not even one.
    """
    gpu, fitting = devices > 0, trials
    for one in configs:
        least, most = one.worker_range(devices)
        gpus = gpu * one.parallel.gpus_a_worker
        check_resources(one, least, gpus, resources)
        for name, amount in asks(one.ray, gpus).items():
            if amount:
                fitting = min(
                    fitting, int(resources[name] // (amount * (most + one.rollout_actors)))
                )
    wanted = config.tune.max_concurrent or fitting
    if wanted > max(1, fitting) and wanted <= trials:
        terminal.console.print(f"note: the cluster holds {max(1, fitting)} trials at once")
    return max(1, min(wanted, fitting))


def _show_plan(
    sweep: Sweep, space: Space, configs: list[RunConfig], prepared: list[Preparation]
) -> None:
    tune, first = sweep.config, prepared[0]
    spaces: dict[str, None] = {}
    for corner in space.corners():
        for one in space.dimensions(corner):
            kind = ", ".join(map(_option, one.values))
            spaces[f"{one.key or 'group'}: {one.kind} [{kind}]"] = None
    least, most = configs[0].worker_range(sweep.devices)
    number = str(most) if least == most else f"{least} to {most}"
    early = {"none": "nobody is stopped early"}.get(
        tune.scheduler, f"{tune.scheduler} on {tune.metric}, not before step {sweep.grace}"
    )
    rows = [
        ("trials", f"{sweep.search.total} ({tune.search}), {sweep.concurrent} at once"),
        ("workers", f"{number} a trial ({'GPU' if sweep.gpu else 'CPU'})"),
        ("scheduler", early),
        ("model", f"{first.job.config.model}, {first.parameters:,} parameters (computed)"),
        ("steps", f"{sweep.steps} a trial"),
        ("evaluation", sweep_metric.described(first, tune)),
        *[("space", line) for line in spaces],
        ("output", str(sweep.folder)),
    ]
    terminal.table("sweep", rows)
    for warning in first.warnings:
        terminal.console.print(f"note: {warning}", style="yellow", markup=False)
    if tune.scheduler != "none" and sweep.grace >= sweep.steps:
        text = f"note: no evaluation before the last of {sweep.steps} steps: nobody is stopped"
        terminal.console.print(text, style="yellow")


def _option(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _start(config: SweepConfig, folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        for name in _OWN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    text = yaml.safe_dump(_lasting(values), allow_unicode=True, sort_keys=False)
    replace(folder / _SWEEP, text)


def _run(sweep: Sweep, kept: list[Trial], names: list[str]) -> None:
    def told(trial: Trial) -> None:
        _tell(trial, names, sweep)
        if trial.status != sweep_trial.RUNNING:
            results.write(sweep.folder, ordered(), names, sweep.config)

    def ordered() -> list[Trial]:
        return [trials.trials[number] for number in sorted(trials.trials)]

    def stop(number: int) -> None:
        terminal.console.print("stopping the trials at the end of their steps, with checkpoints")
        trials.stop()

    trials = Trials(sweep, kept, told)
    with stop_signals(stop) as asked:
        try:
            fit(sweep, trials, sweep.folder / _STATE)
        finally:
            shutil.rmtree(sweep.folder / _STATE, ignore_errors=True)
    _finish(sweep, ordered(), names, exit_status(asked) if asked else 0)


def _tell(trial: Trial, names: list[str], sweep: Sweep) -> None:
    """One line: a trial has started, or how it ended."""
    metric = sweep.config.metric
    if trial.status == sweep_trial.RUNNING:
        settings = results.settings_of(trial)
        drawn = ", ".join(f"{name} {settings.get(name)}" for name in names)
        line = f"started: {drawn}"
    else:
        score = trial.score(metric)
        shown = "" if score is None else f", {metric} {score:.4f}"
        line = f"{trial.status}{shown}{', ' + trial.why if trial.why else ''}"
    terminal.console.print(f"trial {trial.number} {line}", markup=False)


def _finish(sweep: Sweep, trials: list[Trial], names: list[str], stopped: int) -> None:
    config, folder = sweep.config, sweep.folder
    results.write(folder, trials, names, config)
    plots.draw(folder, trials, names, config)
    results.show(trials, names, config)
    first = sweep_trial.best(trials, config.metric, config.better)
    if first:
        rows = [("best", f"trial {first.number}, {config.metric} {first.score(config.metric):.4f}")]
        rows += [("run it again", f"aift-ray train --config {folder / results.BEST}")]
        rows += [("trials", str(folder / results.CSV)), ("plots", str(folder / "plots"))]
        terminal.table("result", rows)
    if stopped:
        left = sum(not trial.settled for trial in trials)
        message = f"stopped with {left} trials under way; go on with the same command and --resume"
        raise Interrupted(message, stopped)
    if first is None:
        raise TrainingError(f"no trial ran to its end; {folder / results.CSV} says why")
