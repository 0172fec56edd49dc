"""Training on Ray Train workers: start or join a cluster, run the job, tell how it ended."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.experimental import internal_kv
from ray.train import FailureConfig, ScalingConfig

from aift_ray.config import RayConfig
from aift_ray.engine.job import Job
from aift_ray.engine.run_errors import LOG, short
from aift_ray.errors import AiftError, ConfigError, Problem, TrainingError, WorkersLost
from aift_ray.launch import failures, passing, reaper
from aift_ray.launch.elastic import SaveBeforeResize
from aift_ray.launch.local_token import own_token
from aift_ray.launch.output import FAILURES, read_failures
from aift_ray.planning.ways import remedy

_USED_MEMORY = re.compile(r"[\d.]+GB used / [\d.]+GB")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+")


@contextmanager
def cluster(variables: Mapping[str, str] | None = None) -> Iterator[dict[str, float]]:
    """A cluster to run on, and its resources: that of RAY_ADDRESS, else one of this machine.

    Args:
        variables: environment of all processes of a cluster that is started here, where they are
            not set already.

    Raises:
        ConfigError: the cluster of RAY_ADDRESS can't be reached.
    """
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        if not address:
            folder = stack.enter_context(own_token())
            stack.enter_context(reaper.watched(folder))
        stack.callback(ray.shutdown)
        with _environment({} if address else variables or {}):
            _connect(address)
        yield ray.cluster_resources()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _connect(address: str | None) -> None:
    try:
        if address and _HOST_AND_PORT.fullmatch(address):
            # Ray itself would try for a minute
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=5).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without "local", Ray would join whatever cluster was last started on this machine
            ray.init(
                address or "local",
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=None if address else False,
            )
    except Exception as error:
        # where a server of it does not start in time, Ray raises no narrower kind
        if address is None:
            raise TrainingError(f"Ray could not be started: {short(error)}") from error
        remedy = "check that the cluster runs, and that ~/.ray/auth_token is the cluster's"
        problem = Problem(f"RAY_ADDRESS {address}", f"can't be reached: {short(error)}", remedy)
        raise ConfigError([problem]) from error


def asked(config: RayConfig, gpus: int) -> dict[str, float]:
    """What one worker, on `gpus` GPUs, asks of the cluster, {resource: amount}."""
    resources = {"CPU": config.cpus_per_worker or 1.0, **config.resources_per_worker}
    return resources | {"GPU": float(gpus)} if gpus else resources


def check_resources(
    config: RayConfig, workers: int, gpus: int, resources: dict[str, float]
) -> None:
    """Refuse what the cluster can never give.

    Args:
        gpus: of each worker.

    Raises:
        ConfigError: too few CPUs, GPUs or other resources for `workers` workers.
    """
    problems = []
    for name, amount in asked(config, gpus).items():
        needed, there = amount * workers, resources.get(name, 0.0)
        if needed > there:
            what = f"{workers} workers need {needed:g} {name}, the cluster has {there:g}"
            setting = "ray.cpus_per_worker" if name == "CPU" else "ray.resources_per_worker"
            remedy = f"lower --num-workers{'' if name == 'GPU' else f' or --{setting}'}"
            problems.append(Problem("ray.num_workers", what, remedy))
    if problems:
        raise ConfigError(problems)


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


def _trainer(job: Job, workers: tuple[int, int], gpu: bool) -> ray.train.torch.TorchTrainer:
    config = job.config.ray
    least, most = workers
    if least != most:
        # when a machine is lost, Ray waits this long for the room that it still believes in
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    threads = str(max(1, int(config.cpus_per_worker or 1)))
    told = passing.environment()
    if gpu:
        told |= passing.on_gpus(job.config.parallel.offload)
    return _Trainer(
        _work,
        train_loop_config={"job": job, "threads": int(threads), "secrets": passing.secrets()},
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
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=[failures.Causes(job.output / FAILURES), SaveBeforeResize(job.output)],
            worker_runtime_env={"env_vars": told | {"OMP_NUM_THREADS": threads}},
        ),
    )


class _Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """With this package's policy, and without the actor that asks the dashboard about the run.

    Where there is no dashboard, that would take 12 seconds to give up at the end of each run.
    """

    def _initialize_and_run_controller(self, **how: Any) -> Any:
        policy = failures.Policy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**how | {"failure_policy": policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if internal_kv._internal_kv_get("webui:url", namespace="dashboard"):
            return list(callbacks)
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def causes(output: Path) -> list[str]:
    """Why the group of workers failed, an entry a failure."""
    return read_failures(output / FAILURES)


def _work(settings: dict[str, Any]) -> AiftError | None:
    """Runs in each worker; what all workers leave with is returned, else it is raised."""
    import torch

    from aift_ray.engine.worker import work
    from aift_ray.launch.telemetry import Telemetry
    from aift_ray.parallel.group import Group

    os.environ.update(settings["secrets"].values)
    torch.set_num_threads(settings["threads"])
    quiet()
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    group = Group(context.get_world_rank(), context.get_world_size(), device)
    job: Job = settings["job"]
    try:
        work(job, group, ray.train.report, Telemetry(job.output.name, group))
    except AiftError as error:
        return failures.returned(error, group)
    return None


def quiet() -> None:
    """Silence what libraries say that a user can't act on."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _explained(error: BaseException, job: Job) -> AiftError:
    found = getattr(error, "worker_failures", {})
    known = failures.own(found)
    if known:
        return known
    text = "; ".join(failures.each(found)) or short(error)
    if "running low on memory" in str(error):
        text = _host_memory(str(error), job)
    kind = TrainingError if failures.of_code(found) else WorkersLost
    log = job.output / LOG
    try:
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return kind(f"training failed: {text}")
    return kind(f"training failed: {text}\n  the whole of it is in {log}")


def _host_memory(message: str, job: Job) -> str:
    """What to tell where Ray ended workers because their machine ran out of memory."""
    used = _USED_MEMORY.search(message)
    text = "the machine ran out of memory and Ray stopped its workers"
    text += f" ({used[0]})" if used else ""
    if job.memory:
        total = job.memory.total / 2**30
        text += f"\n  computed for a worker: {total:.2f} GiB ({job.memory.parts})"
    return f"{text}\n  try {remedy(job.config)}, or fewer workers on a machine"
