"""What a machine needs for backend deepspeed, told without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from aift_ray.config import ParallelConfig, RunConfig, deepspeed_config
from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.compilers import compiler, has_toolkit
from aift_ray.utils.drivers import may_see_gpus

_READS = f"{deepspeed_config.FIELD}: device nvme"


def check(config: RunConfig, gpu: bool | None = None) -> list[Problem]:
    """What is missing on this machine, where its own workers are to run.

    On a cluster elsewhere its machines are asked (`ray_backend/node_checks.py`).

    Args:
        gpu: whether the workers have GPUs; None: as far as it can be told without torch.
    """
    if "RAY_ADDRESS" in os.environ:
        return []
    if gpu is None:
        gpu = config.ray.use_gpu is not False and "torch" not in sys.modules and may_see_gpus()
    return missing(config.parallel, gpu)


def missing(parallel: ParallelConfig, gpu: bool) -> list[Problem]:
    """What workers on this machine lack."""
    if not parallel.by_deepspeed:
        return []
    found = []
    if not find_spec("deepspeed"):
        remedy = "pip install 'aift-ray[deepspeed]', or use --parallel.backend fsdp2"
        found.append(Problem("parallel.backend", "deepspeed is not installed", remedy))
    found += deepspeed_config.unwritable(parallel)
    offloaded = deepspeed_config.offloaded(parallel).values()
    on_disk = any(options["device"] == "nvme" for options in offloaded)
    return found + (_async_io(gpu) if on_disk else [])


def named(parallel: ParallelConfig, gpu: bool) -> list[Problem]:
    """The same, and what speaks against the file here: it was checked on another machine.

    Each names this machine.
    """
    unread = deepspeed_config.unreadable(parallel)
    if unread:
        found = [replace(unread, remedy="put it where all machines see it")]
    else:
        found = missing(parallel, gpu)
    return [replace(each, what=f"on {platform.node()}: {each.what}") for each in found]


def check_worker(parallel: ParallelConfig, gpu: bool) -> None:
    """Check a worker's machine, before the worker loads the model.

    Raises:
        ConfigError: what is missing, with the machine's name.
    """
    problems = named(parallel, gpu)
    if problems:
        raise ConfigError(problems)


def _async_io(gpu: bool) -> list[Problem]:
    """What is missing to read and write files as DeepSpeed does, which it compiles at first use."""
    spec = find_spec("deepspeed")
    library = Path(spec.origin).parent if spec and spec.origin else None
    if library and any((library / "ops" / "aio").glob("async_io_op*.so")):
        return []
    found, build = [], compiler(gpu=False)
    if build is None:
        found.append(_lacks("a C++ compiler", "apt-get install g++"))
    elif not _links(build):
        what = "needs libaio for DeepSpeed's async_io, and it can't be compiled with"
        found.append(Problem(_READS, what, "apt-get install libaio-dev, or use device cpu"))
    if shutil.which("ninja") is None and find_spec("ninja") is None:
        found.append(_lacks("ninja", "pip install ninja"))
    if gpu and not has_toolkit():
        found.append(_lacks("the CUDA toolkit", "install it and set CUDA_HOME"))
    return found


def _lacks(what: str, remedy: str) -> Problem:
    text = f"needs {what} for DeepSpeed's async_io, and there is none"
    return Problem(_READS, text, f"{remedy}, or use device cpu")


def _links(build: str) -> bool:
    """Whether a program that uses libaio can be compiled and linked."""
    program = "#include <libaio.h>\nint main() { io_context_t c = 0; return io_setup(1, &c); }"
    command = [build, "-x", "c++", "-", "-laio", "-o", os.devnull]
    made = subprocess.run(command, input=program, text=True, capture_output=True, check=False)
    return made.returncode == 0
