"""The output folder of a run: made, refused, emptied, or gone on with."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from aift_ray.config import RunConfig
from aift_ray.engine import checkpoint
from aift_ray.engine.metrics import PROGRESS, STOP, write_json
from aift_ray.errors import ConfigError, Problem

CONFIG, SUMMARY = "config.yaml", "summary.json"
# what a run leaves; only these are removed by --overwrite
_OWN = (CONFIG, SUMMARY, "metrics.jsonl", "loss.png", "checkpoints", "model", "tensorboard")
_OWN_HIDDEN = (PROGRESS, STOP, ".ray", ".failures.jsonl")


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
    if _occupied(folder) and not (config.overwrite or config.resume):
        remedy = "give --resume latest to go on, --overwrite to start anew, or another name"
        return [Problem(where, "is not empty", remedy)]
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(parent, os.W_OK):
        return [Problem(where, "can't be written", "name another --output-dir")]
    return []


def check_space(folder: Path, needed: int, use: str = "checkpoints") -> list[Problem]:
    """Whether the disk under `folder` holds `needed` bytes more."""
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free >= needed:
        return []
    what = f"{free / 2**30:.2f} GiB are free, {needed / 2**30:.2f} GiB are needed for {use}"
    remedy = "free some, or name another --output-dir"
    if use == "checkpoints":
        remedy += ", or lower --training.keep_checkpoints"
    return [Problem(f"disk of {folder}", what, remedy)]


def _occupied(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def start(config: RunConfig, folder: Path) -> None:
    """Make the folder ready: emptied of an earlier run where asked for, with config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        for name in (*_OWN, *_OWN_HIDDEN):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in (STOP, PROGRESS, ".failures.jsonl"):
        (folder / name).unlink(missing_ok=True)
    values = config.model_dump(mode="json", exclude={"overwrite", "resume", "output_dir"})
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    write_json(folder / SUMMARY, {"status": "running"})


def resume_point(config: RunConfig, folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what the user should know about the choice.

    Raises:
        ConfigError: a checkpoint named by the user that is missing or damaged.
    """
    if config.resume is None:
        return None, []
    if config.resume != "latest":
        chosen = Path(config.resume).expanduser().absolute()
        wrong = checkpoint.damage(chosen) if chosen.is_dir() else "no such folder"
        if wrong:
            remedy = "name a folder checkpoints/step-N, or 'latest'"
            raise ConfigError([Problem(f"resume {config.resume}", wrong, remedy)])
        return chosen, [f"resumed from {chosen}"]
    notes: list[str] = []
    for step in reversed(checkpoint.steps(folder / "checkpoints")):
        chosen = folder / "checkpoints" / f"step-{step}"
        wrong = checkpoint.damage(chosen)
        if wrong is None:
            return chosen, [*notes, f"resumed from checkpoints/step-{step}"]
        notes.append(f"checkpoints/step-{step} is damaged ({wrong}); taking the one before")
    return None, [*notes, "no checkpoint to resume from: starting from the beginning"]


def finished(folder: Path) -> bool:
    """Whether the run in `folder` is done."""
    return summary(folder).get("status") == "done"


def summary(folder: Path) -> dict[str, Any]:
    """The run's summary; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def finish(folder: Path, **values: Any) -> dict[str, Any]:
    """Add `values` to the run's summary and remove what only the running needs."""
    result = summary(folder) | values
    write_json(folder / SUMMARY, result)
    for name in (STOP, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    return result
