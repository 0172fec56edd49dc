"""Whether NVIDIA's driver is new enough for torch's build of CUDA, and what to install if not."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import warnings
from pathlib import Path

from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.machine import driver_version

# the oldest driver of Linux that runs programs of a CUDA release, by NVIDIA's release notes; within
# a major release newer toolkits run on older drivers
_NEEDED = {11: 450, 12: 525, 13: 580}
_OLDER = "cu126 or cu128"


def usable_gpus() -> int:
    """The GPUs of this machine that torch can compute on.

    Raises:
        ConfigError: the driver shows GPUs that torch can't use.
    """
    if not may_see_gpus():
        return 0
    import torch

    # asks the driver's management library, which answers for drivers that are too old as well
    count = torch.cuda.device_count()
    if count == 0:
        return 0
    with warnings.catch_warnings():
        # torch warns of what is told below
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return count
    found, cuda = driver_version(), torch.version.cuda or ""
    what = too_old(found, cuda) or f"torch can't use them with driver {found or 'unknown'}"
    remedy = (
        f"{update(found, cuda, torch.__version__)}; to compute on CPUs, CUDA_VISIBLE_DEVICES=''"
    )
    raise ConfigError([Problem("GPU", f"{count} are there; {what}", remedy)])


def may_see_gpus() -> bool:
    """Whether torch may find a GPU here; told without importing it, which takes seconds."""
    if "torch" in sys.modules:
        return True
    found = importlib.util.find_spec("torch")
    origin = found.origin if found else None
    if origin is None:
        return False
    about = (Path(origin).parent / "version.py").read_text(encoding="utf-8")
    if re.search(r"^hip\b.*= *['\"]", about, re.MULTILINE):
        return True
    if re.search(r"^cuda\b.*= *None", about, re.MULTILINE):
        return False
    try:
        ctypes.CDLL("libcuda.so.1" if sys.platform == "linux" else "nvcuda.dll")
    except OSError:
        return False
    return True


def too_old(driver: str | None, cuda: str) -> str:
    """What to say of a driver that can't run programs of a CUDA release; empty where it can."""
    needed = _needed(cuda)
    if driver is None or needed is None or _major(driver) >= needed:
        return ""
    return (
        f"NVIDIA's driver is {driver}, and torch is built for CUDA {cuda}, which needs "
        f"{needed} or newer"
    )


def update(driver: str | None, cuda: str, torch_version: str) -> str:
    """What to install, so that a driver and torch go together."""
    needed, plain = _needed(cuda), torch_version.partition("+")[0]
    if needed is None or driver is None or _major(driver) >= needed:
        return "run aift-ray doctor, and see what nvidia-smi says"
    newer = f"install driver {needed} or newer"
    if needed <= _NEEDED[12] or _major(driver) < _NEEDED[12]:
        return newer
    return (
        f"{newer}, or the {_OLDER} build of the same torch from PyTorch's index "
        f"(pip install torch=={plain}+cu128), which needs {_NEEDED[12]}"
    )


def _needed(cuda: str) -> int | None:
    return _NEEDED.get(_major(cuda))


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
