"""What a machine has: packages, GPUs and their driver, memory, the way to the Hub."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

# what training and serving compute with; all nodes need the same
PACKAGES = ("aift-ray", "torch", "ray", "transformers", "peft", "accelerate", "bitsandbytes")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use; memory in bytes."""

    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Machine:
    """What was found on a machine.

    Attributes:
        packages: name to version, of those that all nodes need in the same version.
        unmet: what aift_ray requires and doesn't find, a sentence each.
        cards: NVIDIA GPUs on the machine's bus, whether or not they can be used.
        driver: version of NVIDIA's driver; None: there is none.
        cuda: version that torch was built for; None: it was built for the CPU.
        gpu_error: why torch can't use a GPU, in its own words.
        nccl: version; None: torch has none.
        shm: bytes of /dev/shm; None: there is no such folder.
        disk: free bytes where temporary files go, Ray's among them.
        hub: "offline" by choice, "reached", or why it was not.
    """

    name: str
    python: str
    packages: dict[str, str]
    unmet: list[str]
    cards: int
    driver: str | None
    cuda: str | None
    gpus: list[Gpu]
    gpu_error: str
    nccl: str | None
    shm: int | None
    memory: int
    disk: int
    hub: str


def look() -> Machine:
    """Look at this machine; takes some seconds, most of them for torch."""
    import torch

    gpus, error = _gpus()
    return Machine(
        name=socket.gethostname(),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        unmet=_unmet(),
        cards=_cards(),
        driver=driver_version(),
        cuda=torch.version.cuda,
        gpus=gpus,
        gpu_error=error,
        nccl=_nccl(),
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        memory=psutil.virtual_memory().total,
        disk=shutil.disk_usage(os.environ.get("RAY_TMPDIR", "/tmp")).free,
        hub=_hub(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _unmet() -> list[str]:
    try:
        required = importlib.metadata.requires("aift-ray") or []
    except importlib.metadata.PackageNotFoundError:
        # run from a folder of sources
        return []
    found = []
    for requirement in map(Requirement, required):
        # the extras are for developers
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            has = _version(requirement.name)
            if has == "not installed" or not requirement.specifier.contains(has, prereleases=True):
                found.append(f"{requirement.name} is {has}, {requirement} is required")
    return found


def _cards() -> int:
    number = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            vendor = (device / "vendor").read_text("ascii").strip()
            kind = (device / "class").read_text("ascii")
            number += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return number


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None: there is none that answers."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None


def _gpus() -> tuple[list[Gpu], str]:
    import torch

    if torch.version.cuda is None:
        return [], ""
    try:
        torch.cuda.init()
        found = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found.append(Gpu(torch.cuda.get_device_name(index), free, total))
        return found, ""
    except (RuntimeError, AssertionError) as error:
        return [], str(error).splitlines()[0]


def _nccl() -> str | None:
    import torch

    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _hub() -> str:
    from huggingface_hub import constants

    from aift_ray.utils.hub_reach import why_unreached

    if constants.HF_HUB_OFFLINE:
        return "offline"
    why = why_unreached()
    return f"{constants.ENDPOINT} is not reached: {why}" if why else "reached"
