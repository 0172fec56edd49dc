"""What a machine needs for backend deepspeed, told without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from aift_ray.config import RunConfig, deepspeed_config
from aift_ray.errors import Problem
from aift_ray.utils.compilers import compiler

_READS = f"{deepspeed_config.FIELD}: device nvme"


def check(config: RunConfig) -> list[Problem]:
    """What is missing on this machine, whose workers write to the folders of the file.

    What those of a cluster elsewhere can write is checked by each of its workers, before it loads
    the model (`deepspeed_config.check_machine`).
    """
    if not config.parallel.by_deepspeed:
        return []
    found = []
    if not find_spec("deepspeed"):
        remedy = "pip install 'aift-ray[deepspeed]', or use --parallel.backend fsdp2"
        found.append(Problem("parallel.backend", "deepspeed is not installed", remedy))
    if "RAY_ADDRESS" in os.environ:
        return found
    found += deepspeed_config.unwritable(config.parallel)
    offloaded = deepspeed_config.offloaded(config.parallel).values()
    on_disk = any(options["device"] == "nvme" for options in offloaded)
    return found + (_async_io() if on_disk else [])


def _async_io() -> list[Problem]:
    """What is missing to read and write files as DeepSpeed does, which it compiles at first use."""
    spec = find_spec("deepspeed")
    library = Path(spec.origin).parent if spec and spec.origin else None
    if library and any((library / "ops" / "aio").glob("async_io_op*.so")):
        return []
    found, build = [], compiler(gpu=False)
    if build is None:
        what = "needs a C++ compiler for DeepSpeed's async_io, and there is none"
        found.append(Problem(_READS, what, "apt-get install g++, or use device cpu"))
    elif not _links(build):
        what = "needs libaio for DeepSpeed's async_io, and it can't be compiled with"
        found.append(Problem(_READS, what, "apt-get install libaio-dev, or use device cpu"))
    if shutil.which("ninja") is None and find_spec("ninja") is None:
        what = "needs ninja for DeepSpeed's async_io, and there is none"
        found.append(Problem(_READS, what, "pip install ninja, or use device cpu"))
    return found


def _links(build: str) -> bool:
    """Whether a program that uses libaio can be compiled and linked."""
    program = "#include <libaio.h>\nint main() { io_context_t c = 0; return io_setup(1, &c); }"
    command = [build, "-x", "c++", "-", "-laio", "-o", os.devnull]
    made = subprocess.run(command, input=program, text=True, capture_output=True, check=False)
    return made.returncode == 0
