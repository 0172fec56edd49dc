"""The output folder of a run: made, refused, emptied, or gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from aift_ray.config import RunConfig
from aift_ray.engine import checkpoint
from aift_ray.engine.checkpoint.mirror import CheckpointMirror, newest
from aift_ray.engine.metrics import END, EVENTS, METRICS, PROGRESS, SAVE, STOP, write_json
from aift_ray.engine.phases import STAGE
from aift_ray.engine.run_errors import LOG
from aift_ray.errors import ConfigError, Problem
from aift_ray.runs import run_dir_check
from aift_ray.runs.restart_causes import FAILURES

CONFIG, SUMMARY = "config.yaml", "summary.json"
# where trackers that work offline keep a run
_TRACKERS = ("trackers.json", "wandb", "mlruns")
# what a run leaves; only these are removed by --overwrite
_OWN = (
    CONFIG,
    SUMMARY,
    METRICS,
    "loss.png",
    "checkpoints",
    "model",
    "tensorboard",
    LOG,
    *_TRACKERS,
)
_WHILE_RUNNING = (STOP, SAVE, END, EVENTS, PROGRESS, STAGE)
_OWN_HIDDEN = (*_WHILE_RUNNING, ".ray", ".tokenizer", FAILURES)


def check(config: RunConfig, folder: Path) -> list[Problem]:
    """What speaks against writing into `folder`, and into the storage path."""
    problems = run_dir_check.check(config, folder)
    copies = None if problems else store(config, folder)
    return copies.check() if copies else problems


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


def start(config: RunConfig, folder: Path) -> None:
    """Make the folder ready: emptied of an earlier run where asked for, with config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        for name in (*_OWN, *_TRACKERS, *_OWN_HIDDEN):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in (*_WHILE_RUNNING, FAILURES):
        (folder / name).unlink(missing_ok=True)
    values = config.model_dump(
        mode="json", exclude={"overwrite", "resume", "resume_allow", "output_dir"}
    )
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
        named = Path(config.resume).expanduser().absolute()
        wrong = checkpoint.damage(named) if named.is_dir() else "no such folder"
        if wrong:
            raise ConfigError([run_dir_check.wrong_checkpoint(config.resume, wrong)])
        return named, [f"resumed from {named}"]
    found, notes = newest(folder / "checkpoints", store(config, folder))
    if found:
        return found, [*notes, f"resumed from checkpoints/{found.name}"]
    return None, [*notes, "no checkpoint to resume from: starting from the beginning"]


def how_to_go_on(folder: Path) -> str:
    """What to type to go on with a run that was stopped."""
    return f"go on with --config {folder / CONFIG} --output-dir {folder} --resume latest"


def store(config: RunConfig, folder: Path) -> CheckpointMirror | None:
    """The second place for the run's checkpoints and results, if there is one."""
    path = config.ray.storage_path
    return CheckpointMirror(path, folder.name) if path else None


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


def finish(folder: Path, **values: object) -> dict[str, Any]:
    """Add `values` to the run's summary and remove what only the running needs."""
    result = summary(folder) | values
    write_json(folder / SUMMARY, result)
    for name in _WHILE_RUNNING:
        (folder / name).unlink(missing_ok=True)
    return result


def bring(config: RunConfig, folder: Path) -> None:
    """Bring from the storage path what workers of another machine have written.

    Raises:
        OSError: the storage path can't be read.
    """
    copies = store(config, folder)
    if copies and not (folder / METRICS).exists():
        (folder / SUMMARY).unlink(missing_ok=True)
        copies.fetch_results(folder)


def copy(config: RunConfig, folder: Path) -> None:
    """Copy what this process wrote to the storage path; worker 0 copies the rest.

    Raises:
        OSError: again and again.
    """
    copies = store(config, folder)
    if copies:
        copies.put_results(folder, (CONFIG, SUMMARY))
