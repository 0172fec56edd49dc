"""What speaks against an output folder, told without torch and without Ray."""

from __future__ import annotations

import os
import time
from pathlib import Path

from aift_ray.config import RunConfig
from aift_ray.errors import Problem


def output_folder(config: RunConfig) -> Path:
    """The run's folder, absolute: --output-dir, else one named by the time under the parent."""
    if config.output_dir:
        return Path(config.output_dir).expanduser().absolute()
    parent = Path(config.training.output_dir).expanduser()
    return (parent / time.strftime("%Y%m%d-%H%M%S")).absolute()


def check(config: RunConfig, folder: Path) -> list[Problem]:
    """What speaks against writing into `folder`."""
    where = f"output folder {folder}"
    if folder.exists() and not folder.is_dir():
        return [Problem(where, "is a file", "name another --output-dir")]
    if folder.is_dir() and any(folder.iterdir()) and not (config.overwrite or config.resume):
        remedy = "give --resume latest to continue, --overwrite to start again, or another name"
        return [Problem(where, "is not empty", remedy)]
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(parent, os.W_OK):
        return [Problem(where, "can't be written", "name another --output-dir")]
    return []


def resume(name: str | None) -> list[Problem]:
    """What is wrong with the name of a checkpoint to go on from."""
    if name is None or name == "latest" or Path(name).expanduser().is_dir():
        return []
    return [wrong_checkpoint(name, "no such folder")]


def wrong_checkpoint(name: str, what: str) -> Problem:
    """A problem of the checkpoint that --resume names."""
    return Problem(f"resume {name}", what, "name a folder checkpoints/step-N, or 'latest'")
