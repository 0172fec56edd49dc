"""One worker's run from start to end: resume, evaluate, loop, save, summarize."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from aift_ray.engine import checkpoint, loop, phases, run_errors
from aift_ray.engine.build import build
from aift_ray.engine.checkpoint.mirror import CheckpointMirror
from aift_ray.engine.checkpoint.writer import CheckpointWriter
from aift_ray.engine.grpo.rollout_engine import RolloutPool
from aift_ray.engine.job import Job
from aift_ray.engine.metrics import Metrics
from aift_ray.engine.run_session import Report, RunSession
from aift_ray.engine.trackers import Trackers
from aift_ray.engine.worker_run import Run
from aift_ray.errors import TrainingError
from aift_ray.parallel.group import Group
from aift_ray.utils import deepspeed_check, gc_pause


def nothing(metrics: dict[str, Any]) -> None:
    """What is reported to nobody."""


def work(
    job: Job,
    group: Group,
    report: Report = nothing,
    on_metrics: Report = nothing,
    tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None,
    pool: Callable[[], RolloutPool | None] | None = None,
) -> Run:
    """Do this worker's share of `job`, from its newest checkpoint if it has one.

    Args:
        report: called with metrics on every worker at each checkpoint.
        on_metrics: called with metrics on every worker at each step and evaluation.
        tokenizer: gives that of the job's model, where this process has it already; called once.
        pool: starts processes that generate completions, where the workers do not.

    Returns:
        the run, whose `module.model` is the trained model.

    Raises:
        AiftError: an error of the code or of the input; others come of a worker that is lost.
    """
    place = job.config.ray.storage_path
    store = CheckpointMirror(place, job.output.name) if place else None
    # the others are told of an error before this worker waits for what it still writes
    with ExitStack() as at_last, run_errors.told(job, group) as reached:
        deepspeed_check.check_worker(job.config.parallel, group.device.type == "cuda")
        phases.tell(job.output, group, phases.LOADING)
        if group.is_main_process:
            at_last.callback(job.tokenizer_files.remove)
        run = reached.run = build(job, group, _start(job, group, store), tokenizer, pool)
        if run.rollouts:
            at_last.callback(run.rollouts.close)
        if job.config.training.trial_batch:
            if group.device.type != "cpu":
                phases.tell(job.output, group, phases.TRYING)
            loop.trial(run)
        metrics = _metrics(run, job) if group.is_main_process else None
        if metrics and metrics.trackers:
            at_last.callback(metrics.trackers.close, {"status": "failed"})
        writing = CheckpointWriter(run, store)
        at_last.callback(writing.close)
        session = RunSession(run, metrics, writing, report, on_metrics)
        if run.state.step == 0:
            session.evaluate_before()
        phases.tell(job.output, group, phases.FIRST_STEP)
        hooks = loop.LoopHooks(
            session.logged, session.asked, session.save, session.evaluate, session.score
        )
        with gc_pause.of_new_objects():
            status = loop.train(run, hooks)
        session.finish(status)
    group.barrier()
    return run


def _metrics(run: Run, job: Job) -> Metrics:
    names, step = job.config.training.report_to, run.state.step
    return Metrics(job.output, step, Trackers(list(names), job.output, step, run.state.settings))


def _start(job: Job, group: Group, store: CheckpointMirror | None) -> Path | None:
    """The checkpoint to start from: the newest whole one, else the one the run was told of.

    Raises:
        TrainingError: a worker's machine does not see it; on every worker.
    """
    found = (
        group.agree(checkpoint.newest(job.checkpoints, store)[0] if group.is_main_process else None)
        or job.resume
    )
    step = checkpoint.step_of(found.name) if found else None
    if found and not found.is_dir() and store and step in store.steps():
        found = store.fetch(step, job.checkpoints)
    (missing,) = group.sum(float(found is not None and not found.is_dir()))
    if missing:
        raise TrainingError(
            f"{found} is not seen by {missing:.0f} of the workers: put the output folder where all "
            "machines see it, or give --ray.storage_path"
        )
    return found
