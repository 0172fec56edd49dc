"""Offload of a DeepSpeed configuration: what is kept in host memory or on a disk."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aift_ray.config.deepspeed_file import Wrong, shown
from aift_ray.config.deepspeed_keys import OPTIMIZER, PARAM

SECTIONS = (OPTIMIZER, PARAM)


def chosen(zero: dict[str, Any], offload: bool, stage: int) -> dict[str, dict[str, Any]]:
    """{section: its options} of what is kept outside the GPU.

    Args:
        zero: a file's `zero_optimization`; what it leaves out is chosen by
        offload: `parallel.offload`, which keeps all that the stage allows in host memory.
    """
    found = {}
    for name in SECTIONS:
        options = {key: value for key, value in zero.get(name, {}).items() if value is not None}
        if offload and (name == OPTIMIZER or stage == 3):
            options = {"device": "cpu"} | options
        if "nvme_path" in options:
            # DeepSpeed does not know ~
            options["nvme_path"] = os.path.expanduser(options["nvme_path"])
        if options.get("device", "none") != "none":
            found[name] = options
    return found


def wrong(zero: dict[str, Any], offload: bool, stage: int, quantized: bool) -> list[Wrong]:
    """(what is wrong, remedy) with both sections of a file.

    Args:
        quantized: whether the base model is.
    """
    found: list[Wrong] = []
    for name in SECTIONS:
        options, key = zero.get(name, {}), f"zero_optimization.{name}"
        device = options.get("device")
        if offload and device == "none":
            what = f"{key}.device is none there, and parallel.offload is true"
            found.append((what, 'write "auto" there, or leave --parallel.offload out'))
        if device in ("cpu", "nvme"):
            found += [(f"{key} {what}", remedy) for what, remedy in _unfit(name, options, stage)]
        if device in ("cpu", "nvme") and name == PARAM and quantized:
            what = f"{key} can't move a quantized base model: its scales stay on the GPU"
            found.append((what, "leave it out, or use --method lora"))
    return found


def _unfit(name: str, options: dict[str, Any], stage: int) -> list[Wrong]:
    """What a stage of ZeRO can't do of a section, and what the section needs."""
    found, on_disk = [], options["device"] == "nvme"
    if stage < 3 and (name == PARAM or on_disk):
        what = f"needs stage 3, not {stage}" + (" (device nvme)" if on_disk else "")
        found.append((what, "leave it out, or use --strategy zero3"))
    path = str(options.get("nvme_path") or "")
    if on_disk and not path:
        found.append(("has no nvme_path, a folder", f'write "nvme_path": "FOLDER" in {name}'))
    elif on_disk and not os.path.isabs(os.path.expanduser(path)):
        what = f"has the nvme_path {shown(path)}, and workers run in folders of their own"
        found.append((what, f'write "nvme_path": {shown(str(Path(path).absolute()))}'))
    return found


def unwritable(path: str) -> str:
    """Why DeepSpeed can't keep files in a folder, which it makes; "": it can.

    A file is written there as DeepSpeed does, past the page cache, and removed.
    """
    folder = Path(path).absolute()
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    direct = getattr(os, "O_DIRECT", 0)
    try:
        with TemporaryDirectory(dir=there, prefix=".aift-") as made:
            # names that are too long too
            inside = Path(made, folder.relative_to(there))
            inside.mkdir(parents=True, exist_ok=True)
            os.close(os.open(inside / "file", os.O_WRONLY | os.O_CREAT | direct))
    except OSError as error:
        return f"{there}: {error.strerror}"
    return ""
