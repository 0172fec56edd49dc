"""Offload of a DeepSpeed configuration: what is kept in host memory or on a disk."""

from __future__ import annotations

from typing import Any

AUTO = "auto"
OPTIMIZER, PARAM = "offload_optimizer", "offload_param"
SECTIONS = (OPTIMIZER, PARAM)
_DEVICES = ("none", "cpu", "nvme")
# options of both, then those of each, beside device and nvme_path
_TYPES: dict[str, dict[str, type]] = {
    OPTIMIZER: {
        "buffer_count": int,
        "pin_memory": bool,
        "pipeline_read": bool,
        "pipeline_write": bool,
    },
    PARAM: {"buffer_count": int, "pin_memory": bool, "buffer_size": int, "max_in_cpu": int},
}
_NAMES = {int: "a whole number", bool: "true or false"}


def chosen(zero: dict[str, Any], offload: bool, stage: int) -> dict[str, dict[str, Any]]:
    """{section: its options} of what is kept outside the GPU.

    Args:
        zero: a file's `zero_optimization`; what it leaves out is chosen by
        offload: `parallel.offload`, which keeps all that the stage allows in host memory.
    """
    found = {}
    for name in SECTIONS:
        options = {key: value for key, value in (zero.get(name) or {}).items() if value != AUTO}
        if offload and (name == OPTIMIZER or stage == 3):
            options = {"device": "cpu"} | options
        if options.get("device", "none") != "none":
            found[name] = options
    return found


def wrong(
    zero: dict[str, Any], offload: bool, stage: int, quantized: bool
) -> list[tuple[str, str]]:
    """(what is wrong, remedy) with both sections of a file.

    Args:
        quantized: whether the base model is.
    """
    found: list[tuple[str, str]] = []
    for name in SECTIONS:
        options, key = zero.get(name) or {}, f"zero_optimization.{name}"
        if not isinstance(options, dict):
            found.append((f"{key} is not an object", 'write {"device": "cpu"}'))
            continue
        device = options.get("device", "none")
        if device not in (*_DEVICES, AUTO):
            found.append((f"{key}.device is {device}", f"write {', '.join(_DEVICES)} or auto"))
        if offload and device == "none" and "device" in options:
            what = f"{key}.device is none there, and parallel.offload is true"
            found.append((what, "write auto there, or leave parallel.offload off"))
        found += _options(name, options)
        if device in ("cpu", "nvme"):
            found += [(f"{key} {what}", remedy) for what, remedy in _unfit(name, options, stage)]
        if device in ("cpu", "nvme") and name == PARAM and quantized:
            what = f"{key} can't move a quantized base model: its scales stay on the GPU"
            found.append((what, "leave it out, or use --method lora"))
    return found


def _options(name: str, options: dict[str, Any]) -> list[tuple[str, str]]:
    found, types = [], _TYPES[name]
    for option, value in options.items():
        key = f"zero_optimization.{name}.{option}"
        if option in ("device", "nvme_path") or value == AUTO:
            continue
        if option not in types:
            found.append((f"{key} is not done by aift-ray", "leave it out"))
        elif type(value) is not types[option]:
            found.append((f"{key} is {value!r}", f"write {_NAMES[types[option]]}"))
    return found


def _unfit(name: str, options: dict[str, Any], stage: int) -> list[tuple[str, str]]:
    """What a stage of ZeRO can't do of a section, and what the section needs."""
    found, on_disk = [], options["device"] == "nvme"
    if stage < 3 and (name == PARAM or on_disk):
        what = f"needs stage 3, not {stage}" + (" (device nvme)" if on_disk else "")
        found.append((what, "leave it out, or use --strategy zero3"))
    path = options.get("nvme_path")
    if on_disk and not (isinstance(path, str) and path and path != AUTO):
        found.append(("has no nvme_path, a folder", f'write "nvme_path": "FOLDER" in {name}'))
    return found
