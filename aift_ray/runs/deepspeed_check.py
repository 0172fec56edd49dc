"""What a machine needs for offload by DeepSpeed to a disk, told without torch."""

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

    Those of a cluster elsewhere are not known from here.
    """
    if "RAY_ADDRESS" in os.environ:
        return []
    offloaded = deepspeed_config.offloaded(config.parallel).items()
    paths = {name: value["nvme_path"] for name, value in offloaded if value["device"] == "nvme"}
    found = [
        Problem(
            deepspeed_config.FIELD,
            f"zero_optimization.{name}.nvme_path {path} can't be written",
            "name a folder on a local disk in which you may write",
        )
        for name, path in paths.items()
        if not _is_writable(Path(path).expanduser())
    ]
    return found + (_async_io() if paths else [])


def _is_writable(folder: Path) -> bool:
    first = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return first.is_dir() and os.access(first, os.W_OK | os.X_OK)


def _async_io() -> list[Problem]:
    """What is missing to read and write files as DeepSpeed does, which it compiles at first use."""
    spec = find_spec("deepspeed")
    if spec is None or spec.origin is None:
        return []
    if any((Path(spec.origin).parent / "ops" / "aio").glob("async_io_op*.so")):
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
