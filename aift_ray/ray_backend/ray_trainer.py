"""Training on Ray Train workers: start or join a cluster, run the job, tell how it ended."""

from __future__ import annotations

import os
import re
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, ScalingConfig

from aift_ray.engine.job import Job
from aift_ray.engine.run_errors import LOG, short
from aift_ray.errors import AiftError, TrainingError, WorkersLost
from aift_ray.ray_backend import failure_policy
from aift_ray.ray_backend.elastic import SaveBeforeResize
from aift_ray.ray_backend.ray_train_compat import TorchTrainer
from aift_ray.runs import worker_env
from aift_ray.runs.execution import in_words, out_of_memory
from aift_ray.runs.restart_causes import FAILURES
from aift_ray.runs.worker_resources import asked
from aift_ray.utils.quiet import quiet

if TYPE_CHECKING:
    from aift_ray.parallel.group import Group

_USED_MEMORY = re.compile(r"[\d.]+GB used / [\d.]+GB")


def train(job: Job, workers: tuple[int, int], gpu: bool, wait: Callable[[], None]) -> None:
    """Run `job` on Ray Train workers; `wait` is called again and again in this thread meanwhile.

    Raises:
        AiftError: what stopped the workers.
    """
    box: dict[str, Any] = {}

    def fit() -> None:
        try:
            box["result"] = _trainer(job, workers, gpu).fit()
        except BaseException as error:
            box["error"] = error

    # in a thread of its own: the main thread keeps the signals and the display
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        wait()
        thread.join(0.2)
    if "error" in box:
        raise _explained(box["error"], job)
    failure = box["result"].return_value
    if failure is not None:
        raise failure


def _trainer(job: Job, workers: tuple[int, int], gpu: bool) -> TorchTrainer:
    config = job.config.ray
    least, most = workers
    if least != most:
        # when a machine is lost, Ray waits this long for the room that it still believes in
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    threads = str(max(1, int(config.cpus_per_worker or 1)))
    told = worker_env.environment()
    if gpu:
        told |= worker_env.on_gpus(job.config.parallel.offload)
    failures = FailureConfig(max_failures=config.max_failures)
    return TorchTrainer(
        _work,
        train_loop_config={
            "job": job,
            "threads": int(threads),
            "secrets": worker_env.secrets(),
            "gpu": gpu,
        },
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=gpu,
            resources_per_worker=asked(config, gpu * job.config.parallel.gpus_a_worker),
            elastic_resize_monitor_interval_s=config.resize_seconds,
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=job.output.name,
            # Ray's own copy of a checkpoint would end the attempt when it fails
            storage_path=str(job.output / ".ray"),
            failure_config=failures,
            callbacks=[failure_policy.Causes(job.output / FAILURES), SaveBeforeResize(job.output)],
            worker_runtime_env={
                "env_vars": told | {"OMP_NUM_THREADS": threads} | worker_env.waiting()
            },
        ),
        policy=failure_policy.Policy(failures),
    )


def _work(settings: dict[str, Any]) -> AiftError | None:
    """Runs in each worker; what all workers leave with is returned, else it is raised."""
    import torch

    from aift_ray.engine.worker import work
    from aift_ray.parallel.group import Group
    from aift_ray.ray_backend.telemetry import Telemetry

    os.environ.update(settings["secrets"].values)
    torch.set_num_threads(settings["threads"])
    quiet()
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    group = Group(context.get_world_rank(), context.get_world_size(), device)
    job: Job = settings["job"]
    try:
        pool = partial(_rollout_actors, settings, group)
        work(job, group, ray.train.report, Telemetry(job.output.name, group), pool=pool)
    except AiftError as error:
        return failure_policy.returned(error, group)
    return None


def _rollout_actors(settings: dict[str, Any], group: Group) -> Any:
    """Actors that generate completions beside the workers; every worker must call this.

    Returns:
        them on worker 0; None on the others.
    """
    from aift_ray.engine.grpo.completion_source import gathered
    from aift_ray.ray_backend.rollout_actors import RolloutActors, place_of

    job: Job = settings["job"]
    places: list[Any] = [None] * job.config.rollout_actors
    if job.config.generates_in_turn:
        places = gathered(group, place_of(group.device))
    if not group.is_main_process:
        return None
    return RolloutActors(job, places, settings["gpu"], settings["threads"], settings["secrets"])


def _explained(error: BaseException, job: Job) -> AiftError:
    found = getattr(error, "worker_failures", {})
    known = failure_policy.own(found)
    if known:
        return known
    text = "; ".join(failure_policy.each(found)) or short(error)
    if "running low on memory" in str(error):
        text = _host_memory(str(error), job)
    kind = TrainingError if failure_policy.of_code(found) else WorkersLost
    log = job.output / LOG
    try:
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return kind(f"training failed: {text}")
    return kind(f"training failed: {text}\n  the whole of it is in {log}")


def _host_memory(message: str, job: Job) -> str:
    """What to tell where Ray ended workers because their machine ran out of memory."""
    used = _USED_MEMORY.search(message)
    what = "the machine ran out of memory and Ray stopped its workers"
    return out_of_memory(what, used[0] if used else "", in_words(job.memory), job.config)
