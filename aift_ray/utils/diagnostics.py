"""What is wrong with a machine or a group of them, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from aift_ray.utils import drivers
from aift_ray.utils.machine import Gpu, Machine

_GIB = 2**30
# less shared memory is too little for Ray's objects and for what workers of a machine exchange
_SHM = _GIB // 2
# Ray stops writing to a disk that is fuller than 95 percent; logs and checkpoints need room
_DISK = 5 * _GIB
# a smaller share of a GPU that is free means that somebody else is on it
_FREE_SHARE = 0.8
# seconds
_CLOCKS = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        node: the machine; empty where it concerns all of them.
        level: problem: to be mended; note: good to know.
        remedy: what to do; empty where there is nothing to do.
    """

    node: str
    check: str
    level: Literal["ok", "note", "problem"]
    what: str
    remedy: str = ""


def of_machine(machine: Machine, computes: bool = True) -> Iterator[Finding]:
    """What can be said of one machine.

    Args:
        computes: whether workers run there; a head without resources needs no GPU.
    """
    name = machine.name
    yield from _packages(machine)
    yield from _gpus(machine, computes)
    yield from _memory(machine)
    if machine.hub == "offline":
        what = "offline by HF_HUB_OFFLINE: models come from folders and the cache"
        yield Finding(name, "hub", "ok", what)
    elif machine.hub == "reached":
        yield Finding(name, "hub", "ok", "reached")
    else:
        remedy = "set HF_HUB_OFFLINE=1 and name models by folder, or mend the network (HTTPS_PROXY)"
        yield Finding(name, "hub", "note", machine.hub, remedy)


def _packages(machine: Machine) -> Iterator[Finding]:
    torch = machine.packages["torch"]
    what = f"Python {machine.python}, torch {torch}, ray {machine.packages['ray']}"
    if not machine.unmet:
        yield Finding(machine.name, "packages", "ok", what)
    for text in machine.unmet:
        remedy = "pip install -r requirements.lock, or rebuild the image (make images)"
        yield Finding(machine.name, "packages", "problem", text, remedy)


def _gpus(machine: Machine, computes: bool) -> Iterator[Finding]:
    name, seen = machine.name, max(machine.cards, len(machine.gpus))
    if seen == 0 or not (machine.gpus or computes):
        yield Finding(name, "gpu", "ok", "none: it computes on CPUs" if computes else "none needed")
        return
    if len(machine.gpus) < seen:
        yield _unusable(machine)
    for index, gpu in enumerate(machine.gpus):
        yield _gpu(name, index, gpu)
    if machine.gpus:
        what = f"driver {machine.driver or 'of unknown version'}, CUDA {machine.cuda}"
        yield Finding(name, "driver", "ok", what)
    if len(machine.gpus) > 1 and machine.nccl is None:
        what = "torch is built without it: workers on GPUs can't speak with each other"
        yield Finding(name, "nccl", "problem", what, "install torch's CUDA build for Linux")
    elif machine.gpus:
        yield Finding(name, "nccl", "ok", machine.nccl or "not needed by one GPU")


def _unusable(machine: Machine) -> Finding:
    """NVIDIA cards that torch can't use, by the first thing that is missing."""
    cards = f"{machine.cards} NVIDIA GPU{'s' if machine.cards != 1 else ''} on the bus"
    if machine.driver is None:
        what = f"{cards}, and no driver in reach (nvidia-smi doesn't run)"
        remedy = (
            "install NVIDIA's driver; in a container, NVIDIA's container toolkit and --gpus all"
        )
        return Finding(machine.name, "driver", "problem", what, remedy)
    if machine.cuda is None:
        what = f"{cards}, and torch {machine.packages['torch']} is built for the CPU"
        remedy = "pip install --force-reinstall torch==2.13.0, or use the image's target cuda"
        return Finding(machine.name, "cuda", "problem", what, remedy)
    if machine.gpu_error or not machine.gpus:
        old = drivers.too_old(machine.driver, machine.cuda)
        if old:
            remedy = drivers.update(machine.driver, machine.cuda, machine.packages["torch"])
            return Finding(machine.name, "driver", "problem", old, remedy)
        what = f"torch can't use the GPUs: {machine.gpu_error or 'none is visible'}"
        remedy = "CUDA_VISIBLE_DEVICES must name the cards; see what nvidia-smi says"
        return Finding(machine.name, "cuda", "problem", what, remedy)
    what = f"{cards}, {len(machine.gpus)} in use by torch"
    return Finding(machine.name, "gpu", "note", what, "CUDA_VISIBLE_DEVICES names fewer")


def _gpu(node: str, index: int, gpu: Gpu) -> Finding:
    what = f"GPU {index} ({gpu.name}): {gpu.free / _GIB:.1f} of {gpu.total / _GIB:.1f} GiB free"
    if gpu.free >= _FREE_SHARE * gpu.total:
        return Finding(node, "gpu", "ok", what)
    remedy = "another process is on it: nvidia-smi names it; end it, or take the other GPUs"
    return Finding(node, "gpu", "problem", what, remedy)


def _memory(machine: Machine) -> Iterator[Finding]:
    name, shm = machine.name, machine.shm
    yield Finding(name, "memory", "ok", f"{machine.memory / _GIB:.1f} GiB")
    if shm is not None and shm < _SHM:
        what = f"/dev/shm holds {shm / 2**20:.0f} MiB: too little for Ray and its workers"
        remedy = "give the container --shm-size=8g (compose: shm_size), or mount -o remount,size=8g"
        yield Finding(name, "shm", "problem", what, remedy)
    elif shm is not None:
        yield Finding(name, "shm", "ok", f"{shm / _GIB:.1f} GiB")
    if machine.disk < _DISK:
        what = f"{machine.disk / _GIB:.1f} GiB are free where Ray keeps its files"
        yield Finding(name, "disk", "problem", what, "free some, or set RAY_TMPDIR to another disk")
    else:
        yield Finding(name, "disk", "ok", f"{machine.disk / _GIB:.0f} GiB free")


def of_exchange(node: str, gpus: int, why: tuple[str, str] | None) -> Finding:
    """Whether a machine's GPUs exchange data.

    Args:
        why: it fails, as the machine is and without peer-to-peer; empty where it doesn't; None:
            there was no answer.
    """
    whole, without = why or ("no answer",) * 2
    if not whole:
        return Finding(node, "nccl", "ok", f"its {gpus} GPUs exchange data")
    what = f"its {gpus} GPUs don't exchange data ({whole})"
    remedy = "see what NCCL_DEBUG=INFO says; NCCL_P2P_DISABLE=1 didn't help"
    if not without:
        remedy = "set NCCL_P2P_DISABLE=1, with which they do; or turn ACS and IOMMU off in the BIOS"
    return Finding(node, "nccl", "problem", what, remedy)


def of_versions(machines: Sequence[Machine]) -> Iterator[Finding]:
    """Packages, and Python, that are not the same on all machines."""
    everything = [{"Python": m.python, **m.packages} for m in machines]
    differing = [
        name for name in everything[0] if len({versions[name] for versions in everything}) > 1
    ]
    for name in differing:
        places: dict[str, list[str]] = {}
        for machine, versions in zip(machines, everything, strict=True):
            places.setdefault(versions[name], []).append(machine.name)
        what = "; ".join(f"{name} {v} on {', '.join(on)}" for v, on in sorted(places.items()))
        remedy = "bring the same image, or requirements.lock, to all nodes"
        yield Finding("", "versions", "problem", what, remedy)
    if not differing and len(machines) > 1:
        yield Finding("", "versions", "ok", f"the same on {len(machines)} nodes")


def of_clocks(offsets: Sequence[tuple[str, float, float]]) -> Iterator[Finding]:
    """Clocks that differ from this machine's.

    Args:
        offsets: each node's name, the seconds that it is ahead, and how far that may be wrong.
    """
    for node, ahead, error in offsets:
        if abs(ahead) - error > _CLOCKS:
            what = f"its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
            remedy = "keep all clocks by NTP: timedatectl set-ntp true"
            yield Finding(node, "clock", "problem", what, remedy)
        elif len(offsets) > 1:
            yield Finding(node, "clock", "ok", f"within {abs(ahead) + error:.2f} s")
