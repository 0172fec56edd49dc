"""Checkpoints: whole or absent, in Hugging Face layout, with what an exact resume needs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from aift_ray.engine.run_state import RunState

if TYPE_CHECKING:
    from aift_ray.engine.checkpoint.mirror import CheckpointMirror

MANIFEST, MOMENTS, REST = "manifest.json", "optimizer.moments", "trainer_state.pt"
WEIGHTS = "model.safetensors"
_NAME = re.compile(r"step-(\d+)")


@contextmanager
def complete(folder: Path, step: int, begun: bool = False) -> Iterator[Path]:
    """A folder to write a checkpoint into: it becomes `folder`/step-N, whole, or is removed.

    Args:
        folder: the run's `checkpoints` folder.
        begun: `begin` was called, because others write into it too.

    Raises:
        OSError: the disk is full, say; nothing is left under the final name.
    """
    final = folder / f"step-{step}"
    scratch = partial_folder(folder, step) if begun else begin(folder, step)
    try:
        yield scratch
        _write_manifest(scratch)
        if final.exists():
            shutil.rmtree(final)
        scratch.rename(final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def partial_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it has its name."""
    return folder / f".step-{step}.partial"


def begin(folder: Path, step: int) -> Path:
    """An empty folder for the checkpoint of a step."""
    scratch = partial_folder(folder, step)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def write_state(folder: Path, state: RunState, rest: dict[str, Any]) -> None:
    """Write all that is neither weights nor moments."""
    torch.save(rest, folder / REST)
    (folder / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")


def load(folder: Path) -> tuple[RunState, dict[str, Any]]:
    """State and tensors of a checkpoint."""
    tensors = torch.load(folder / REST, map_location="cpu", weights_only=True)
    # none of it is read from the disk before it is used
    for name, moment in load_file(folder / MOMENTS).items():
        weight, _, kind = name.rpartition(".")
        tensors["optimizer"]["state"][weight][kind] = moment
    return read_state(folder), tensors


def split_moments(optimizer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An optimizer's state without its large tensors, and those by name."""
    rest: dict[str, dict[str, Any]] = {weight: {} for weight in optimizer["state"]}
    moments: dict[str, torch.Tensor] = {}
    for weight, values in optimizer["state"].items():
        for kind, value in values.items():
            # a worker that takes part in gathering, and keeps nothing, has None
            if value is not None and value.ndim:
                moments[f"{weight}.{kind}"] = value
            else:
                rest[weight][kind] = value
    return optimizer | {"state": rest}, moments


def read_state(folder: Path) -> RunState:
    """The state in a checkpoint, without its tensors."""
    return RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = (step_of(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(step for step in found if step is not None)


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name, step-N."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def clean(folder: Path) -> None:
    """Remove what a killed run has left half-written in `folder`."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest; None where nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, entry in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, {entry['bytes']} expected"
        if _digest(path) != entry["sha256"]:
            return f"{name} has changed"
    return None


def newest(checkpoints: Path, store: CheckpointMirror | None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, here or in `store`, and what is wrong with newer ones.

    One that is only in the store is brought here first.
    """
    notes: list[str] = []
    here, there = steps(checkpoints), store.steps() if store else []
    for step in sorted({*here, *there}, reverse=True):
        folder = checkpoints / f"step-{step}"
        wrong = damage(folder) if step in here else "not in this folder"
        if wrong and store and step in there:
            shutil.rmtree(folder, ignore_errors=True)
            folder = store.fetch(step, checkpoints)
            notes.append(f"checkpoints/step-{step} was brought from the storage path ({wrong})")
            wrong = damage(folder)
        if wrong is None:
            return folder, notes
        notes.append(f"checkpoints/step-{step} is damaged ({wrong}); taking the one before")
    return None, notes


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and the best one."""
    for step in steps(folder)[:-keep]:
        if step != best:
            # renamed first, so that a half-removed one never bears a checkpoint's name
            doomed = folder / f".step-{step}.removed"
            (folder / f"step-{step}").rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in files
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*files, folder / MANIFEST, folder):
        _sync(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
