"""A training run from its configuration to its summary."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.config import RunConfig
from aift_ray.engine.job import Job
from aift_ray.engine.metrics import STOP
from aift_ray.errors import ConfigError, Interrupted
from aift_ray.launch import display, output, place, resuming, workers
from aift_ray.launch.execution import execute, exit_status, stop_signals
from aift_ray.launch.listening import Listener
from aift_ray.launch.prepare import Preparation, prepare
from aift_ray.utils.drivers import usable_gpus

if TYPE_CHECKING:
    import torch


def run(
    config: RunConfig,
    dry_run: bool = False,
    started: float | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train as `config` says; returns the summary.

    Args:
        dry_run: show what would be done, and do nothing.
        started: when the run was asked for, as time.time() counts; None: now.
        callbacks: told in this process of steps, evaluations and checkpoints; those of worker 0
            alone under torchrun.

    Raises:
        UserError: the input is wrong; nothing was started.
        Interrupted: stopped on request, with a checkpoint.
        TrainingError: failed after the start.
    """
    if config.training.local_rank >= 0:
        return _run_joined(config, started, callbacks)
    folder = place.output_folder(config)
    listener = Listener(folder, callbacks)
    if resuming.done(config, folder):
        display.console.print(f"the run in {folder} is done: nothing to do")
        return output.summary(folder)
    resume = _resume_point(config, folder)
    if dry_run:
        _show_dry_run(config, folder, resume)
        return {}
    with ExitStack() as stack:
        # a cluster is joined first, for its GPUs; on this machine Ray starts when all is well,
        # unless it is to tokenize
        early = "RAY_ADDRESS" in os.environ or config.data.prepare == "ray"
        joined = stack.enter_context(workers.cluster()) if early else None
        gpus = gpus_used(config, int(joined.get("GPU", 0)) if joined else local_gpus(config))
        group = config.worker_range(gpus)
        prepared = _prepared(config, folder, group, gpus > 0, resume, started)
        resources = joined or stack.enter_context(workers.cluster())
        each = config.parallel.gpus_a_worker if gpus else 0
        workers.check_resources(config.ray, group[0], each, resources)
        go = partial(workers.train, _job(prepared, listener), group, gpus > 0)
        return _train(config, folder, prepared, go, listener)


def run_here(
    config: RunConfig, device: torch.device, callbacks: Sequence[Any] = ()
) -> torch.nn.Module:
    """Train as `config` says in this process alone, without Ray; returns the trained model.

    Args:
        callbacks: told of steps, evaluations and checkpoints, which wait for them.

    Raises:
        UserError, Interrupted, TrainingError: as `run`.
    """
    from aift_ray.engine.worker import work
    from aift_ray.parallel.group import Group

    folder, trained = place.output_folder(config), []
    listener = Listener(folder, callbacks)
    resume = _resume_point(config, folder)
    prepared = _prepared(config, folder, (1, 1), device.type == "cuda", resume)

    def go(show: Callable[[], None]) -> None:
        job, group = _job(prepared, listener), Group(0, 1, device)
        with _again_and_again(show):
            trained.append(work(job, group, watch=lambda _: listener.poll()))

    _train(config, folder, prepared, go, listener, here=True)
    model: torch.nn.Module = trained[0].module.model
    return model


def _job(prepared: Preparation, listener: Listener) -> Job:
    return replace(prepared.job, events=listener.listens)


@contextmanager
def _again_and_again(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` twice a second in a thread of its own."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.5):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _resume_point(config: RunConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from, where the output folder is fit to be used."""
    problems = output.check(config, folder)
    if problems:
        raise ConfigError(problems)
    resume, notes = output.resume_point(config, folder)
    for note in notes:
        display.console.print(note, markup=False)
    return resume


def _prepared(
    config: RunConfig,
    folder: Path,
    group: tuple[int, int],
    gpu: bool,
    resume: Path | None,
    started: float | None = None,
) -> Preparation:
    """The run, ready to start, its plan shown; or an error that says why it can't."""
    prepared = prepare(config, folder, group[1], gpu, resume, started)
    keep = config.training.keep_checkpoints + 1
    problems = output.check_space(folder, prepared.checkpoint_bytes * keep)
    if problems:
        raise ConfigError(problems)
    display.show_plan(prepared, group, gpu)
    return prepared


def _run_joined(
    config: RunConfig, started: float | None, callbacks: Sequence[Any]
) -> dict[str, Any]:
    """As a worker of torchrun's group; worker 0 alone makes the folder and talks."""
    from aift_ray.engine import standalone

    world, gpu = standalone.world_size(), gpus_used(config, local_gpus(config)) > 0
    folder = place.output_folder(config)
    listener = Listener(folder, callbacks if standalone.leads() else ())
    if standalone.leads():
        resume = _resume_point(config, folder)
        prepared = _prepared(config, folder, (world, world), gpu, resume, started)
        output.start(config, folder)
    else:
        resume = output.resume_point(config, folder)[0]
        prepared = prepare(config, folder, world, gpu, resume, started)
    workers.quiet()
    standalone.join_and_work(_job(prepared, listener), lambda _: listener.poll())
    if not standalone.leads():
        return {}
    listener.close()
    seconds = time.time() - prepared.job.started
    return _ended(output.finish(folder, causes=[], restarts=0, wall_s=seconds), folder, 75)


def gpus_used(config: RunConfig, there: int) -> int:
    """GPUs that the workers take, of those that are there; 0: they compute on CPUs."""
    if config.ray.use_gpu is None:
        return there
    return max(there, 1) if config.ray.use_gpu else 0


def local_gpus(config: RunConfig) -> int:
    """GPUs of this machine, where the run may take any.

    Raises:
        ConfigError: there are some that torch can't use.
    """
    return 0 if config.ray.use_gpu is False else usable_gpus()


def _show_dry_run(config: RunConfig, folder: Path, resume: Path | None) -> None:
    import yaml

    gpus = gpus_used(config, local_gpus(config))
    group = config.worker_range(gpus)
    prepared = _prepared(config, folder, group, gpus > 0, resume)
    local = {"CPU": float(os.cpu_count() or 1), "GPU": float(local_gpus(config))}
    if "RAY_ADDRESS" not in os.environ:
        each = config.parallel.gpus_a_worker if gpus else 0
        workers.check_resources(config.ray, group[0], each, local)
    display.show_preview(prepared)
    display.console.print("configuration:", style="bold")
    text = yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    display.console.print(text, markup=False)


def _train(
    config: RunConfig,
    folder: Path,
    prepared: Preparation,
    go: Callable[[Callable[[], None]], None],
    listener: Listener,
    here: bool = False,
) -> dict[str, Any]:
    """Do the run by `go`, which calls what shows its progress again and again.

    Args:
        here: callbacks are called by the training itself.
    """
    output.start(config, folder)

    def stop() -> None:
        (folder / STOP).touch()
        display.console.print("stopping at the end of this step, with a checkpoint")

    with stop_signals(stop) as asked, display.Follower(folder) as follower:

        def show() -> None:
            follower.poll()
            if not here:
                listener.poll()

        summary = execute(prepared.job, partial(go, show), listener.poll)
    listener.close()
    return _ended(summary, folder, exit_status(asked))


def _ended(summary: dict[str, Any], folder: Path, code: int) -> dict[str, Any]:
    """Show the summary; Interrupted, with exit status `code`, where the run was stopped."""
    display.show_summary(summary, folder)
    for problem in summary.get("not_copied", ()):
        display.console.print(f"not copied to the storage path: {problem}", markup=False)
    for problem in summary.get("not_reported", ()):
        display.console.print(f"not reported to {problem}", markup=False)
    if summary["status"] == "interrupted":
        raise Interrupted(
            f"stopped after step {summary['steps']} with a checkpoint; "
            f"go on with --config {folder / output.CONFIG} --output-dir {folder} --resume latest",
            code,
        )
    return summary
