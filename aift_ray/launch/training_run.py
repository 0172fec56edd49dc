"""A training run from its configuration to its summary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.config import RunConfig
from aift_ray.engine.job import Job
from aift_ray.engine.metrics import PROGRESS, STOP
from aift_ray.errors import ConfigError, Interrupted, Problem
from aift_ray.ray_backend.ray_tokenize import encode_of
from aift_ray.runs import (
    local_run,
    preview,
    resume_check,
    run_dir,
    run_dir_check,
    terminal,
    worker_resources,
)
from aift_ray.runs.callback_events import Listener
from aift_ray.runs.execution import execution, exit_status, show_end, stop_signals
from aift_ray.runs.prepare import Preparation, prepare
from aift_ray.runs.progress import Follower, doing
from aift_ray.runs.supervise import Attempt
from aift_ray.runs.worker_resources import gpus_used, local_gpus
from aift_ray.utils.quiet import quiet

if TYPE_CHECKING:
    import torch


def run(
    config: RunConfig,
    dry_run: bool = False,
    started: float | None = None,
    attempt: Attempt | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train as `config` says; returns the summary.

    Args:
        dry_run: show what would be done, and do nothing.
        started: when the run was asked for, as time.time() counts; None: now.
        attempt: this process is a child of the command, which starts another one where it is lost:
            a single worker on this machine needs no Ray. None: it is not.
        callbacks: told in this process of steps, evaluations and checkpoints; those of worker 0
            alone under torchrun.

    Raises:
        UserError: the input is wrong; nothing was started.
        Interrupted: stopped on request, with a checkpoint.
        TrainingError: failed after the start.
    """
    if config.training.local_rank >= 0:
        return _run_joined(config, started, callbacks)
    folder, again = run_dir_check.output_folder(config), attempt is not None and attempt.number > 0
    listener = Listener(folder, callbacks)
    if resume_check.done(config, folder):
        terminal.console.print(f"the run in {folder} is done: nothing to do")
        return run_dir.summary(folder)
    resume = _resume_point(config, folder, again)
    if dry_run:
        _show_dry_run(config, folder, resume)
        return {}
    single = config.worker_range(local_gpus(config)) == (1, 1)
    if attempt and single and not config.generates_beside:
        return _run_alone(config, folder, resume, started, attempt)
    return _run_on_ray(config, folder, resume, started, listener)


def _run_alone(
    config: RunConfig, folder: Path, resume: Path | None, started: float | None, attempt: Attempt
) -> dict[str, Any]:
    """As a child of the command, by itself."""
    import torch

    from aift_ray.engine.worker import work
    from aift_ray.parallel.group import Group

    quiet()
    there, again = local_gpus(config), attempt.number > 0
    gpus = gpus_used(config, there)
    prepared = _prepared(config, folder, (1, 1), gpus > 0, resume, started, again)
    job, tokenizers = prepared.job, [prepared.encoder.tokenizer]
    each = job.config.parallel.gpus_a_worker if gpus else 0
    worker_resources.check_resources(job.config, 1, each, worker_resources.of_machine(there))
    # the encoder's copies of a large vocabulary
    del prepared
    group = Group(0, 1, torch.device("cuda", 0) if gpus else torch.device("cpu"))
    # the command has no callbacks
    with (
        _running(job, Listener(folder, ()), again=again) as show,
        local_run.supervised(job, attempt),
        local_run.polling(show),
    ):
        work(job, group, tokenizer=tokenizers.pop)
    return run_dir.summary(folder)


def _run_on_ray(
    config: RunConfig,
    folder: Path,
    resume: Path | None,
    started: float | None,
    listener: Listener,
) -> dict[str, Any]:
    """On workers of a cluster, or of a Ray that is started here while the rows are tokenized."""
    from aift_ray.ray_backend import cluster, node_checks, ray_trainer

    with ExitStack() as stack:
        # a cluster is joined first, for its GPUs, and one that is to tokenize is there for that
        early = "RAY_ADDRESS" in os.environ or config.data.prepare == "ray"
        if early:
            joined = stack.enter_context(cluster.cluster())
            there = int(joined.get("GPU", 0))
        else:
            there = local_gpus(config)
            starting = stack.enter_context(cluster.starting_cluster())
        gpus = gpus_used(config, there)
        group = config.worker_range(gpus)
        if "RAY_ADDRESS" in os.environ:
            node_checks.check([config], gpus > 0)
        prepared = _prepared(config, folder, group, gpus > 0, resume, started)
        resolved = prepared.job.config
        each = resolved.parallel.gpus_a_worker if gpus else 0
        found = joined if early else starting()
        worker_resources.check_resources(resolved, group[0], each, found)
        job = _job(prepared, listener)
        with _running(job, listener) as show:
            ray_trainer.train(job, group, gpus > 0, show)
        return run_dir.summary(folder)


def run_here(
    config: RunConfig, device: torch.device, callbacks: Sequence[Any] = ()
) -> torch.nn.Module:
    """Train as `config` says in this process alone, without Ray; returns the trained model.

    Args:
        callbacks: told of steps, evaluations and checkpoints, which wait for them.

    Raises:
        UserError, Interrupted, TrainingError: as `run`.
    """
    if config.generates_beside:
        name = "placement" if config.rollout_actors else "engine"
        what = f"{getattr(config.grpo, name)} needs Ray, and this process trains alone"
        remedy = "leave it out, or give TrainingConfig(ddp=True)"
        raise ConfigError([Problem(f"grpo.{name}", what, remedy)])
    from aift_ray.engine.worker import work
    from aift_ray.parallel.group import Group

    folder = run_dir_check.output_folder(config)
    listener = Listener(folder, callbacks)
    resume = _resume_point(config, folder)
    job = _job(_prepared(config, folder, (1, 1), device.type == "cuda", resume), listener)
    with _running(job, listener, here=True) as show, local_run.polling(show):
        trained = work(job, Group(0, 1, device), on_metrics=lambda _: listener.poll())
    return trained.module.model


def _job(prepared: Preparation, listener: Listener) -> Job:
    return replace(prepared.job, events=listener.listens)


def _resume_point(config: RunConfig, folder: Path, again: bool = False) -> Path | None:
    """The checkpoint to go on from, where the output folder is fit to be used.

    Args:
        again: the run has begun before, and its worker was lost.
    """
    problems = [] if again else run_dir.check(config, folder)
    if problems:
        raise ConfigError(problems)
    resume, notes = run_dir.resume_point(config, folder)
    for note in notes:
        terminal.console.print(note, markup=False)
    return resume


def _prepared(
    config: RunConfig,
    folder: Path,
    group: tuple[int, int],
    gpu: bool,
    resume: Path | None,
    started: float | None = None,
    again: bool = False,
) -> Preparation:
    """The run, ready to start, its plan shown; or an error that says why it can't.

    Args:
        again: it has begun before, and its plan was shown.
    """
    with doing("reading the model and tokenizing the rows", terminal.console):
        encode = encode_of(config.data)
        prepared = prepare(config, folder, group[1], gpu, resume, started, encode)
    keep = config.training.keep_checkpoints + 1
    problems = run_dir.check_space(folder, prepared.checkpoint_bytes * keep)
    if problems:
        raise ConfigError(problems)
    if not again:
        terminal.show_plan(prepared, group, gpu)
    return prepared


def _run_joined(
    config: RunConfig, started: float | None, callbacks: Sequence[Any]
) -> dict[str, Any]:
    """As a worker of torchrun's group; worker 0 alone makes the folder and talks."""
    from aift_ray.engine import standalone

    world, gpu = standalone.world_size(), gpus_used(config, local_gpus(config)) > 0
    folder = run_dir_check.output_folder(config)
    listener = Listener(folder, callbacks if standalone.leads() else ())
    if standalone.leads():
        resume = _resume_point(config, folder)
        prepared = _prepared(config, folder, (world, world), gpu, resume, started)
        run_dir.start(prepared.job.config, folder)
    else:
        resume = run_dir.resume_point(config, folder)[0]
        encode = encode_of(config.data)
        prepared = prepare(config, folder, world, gpu, resume, started, encode)
    quiet()
    standalone.join_and_work(_job(prepared, listener), lambda _: listener.poll())
    if not standalone.leads():
        return {}
    listener.close()
    seconds = time.time() - prepared.job.started
    return show_end(run_dir.finish(folder, causes=[], restarts=0, wall_s=seconds), folder, 75)


def _show_dry_run(config: RunConfig, folder: Path, resume: Path | None) -> None:
    import yaml

    gpus = gpus_used(config, local_gpus(config))
    group = config.worker_range(gpus)
    prepared = _prepared(config, folder, group, gpus > 0, resume)
    resolved = prepared.job.config
    if "RAY_ADDRESS" not in os.environ:
        each = resolved.parallel.gpus_a_worker if gpus else 0
        local = worker_resources.of_machine(local_gpus(config))
        worker_resources.check_resources(resolved, group[0], each, local)
    preview.show_preview(prepared)
    terminal.console.print("configuration:", style="bold")
    text = yaml.safe_dump(resolved.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    terminal.console.print(text, markup=False)


@contextmanager
def _running(
    job: Job, listener: Listener, here: bool = False, again: bool = False
) -> Iterator[Callable[[], None]]:
    """The time in which workers do `job`; gives what shows its progress, to be called repeatedly.

    Args:
        here: callbacks are called by the training itself.
        again: it has begun before; its folder stays as it is.
    """
    folder = job.output
    if not again:
        run_dir.start(job.config, folder)

    def stop(number: int) -> None:
        if not (folder / PROGRESS).exists():
            # nothing has been trained yet that a checkpoint could hold; what loads a model would
            # take an Exception for one of its own
            raise KeyboardInterrupt
        (folder / STOP).touch()
        terminal.console.print("stopping at the end of this step, with a checkpoint")

    with stop_signals(stop) as asked, Follower(folder, terminal.console) as follower:

        def show() -> None:
            follower.poll()
            if not here:
                listener.poll()

        with execution(job, listener.poll):
            try:
                yield show
            except KeyboardInterrupt:
                text = f"stopped before the first step; {run_dir.how_to_go_on(folder)}"
                raise Interrupted(text, exit_status(asked)) from None
    listener.close()
    show_end(run_dir.summary(folder), folder, exit_status(asked))
