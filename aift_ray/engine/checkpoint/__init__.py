"""Checkpoints: whole or absent, in Hugging Face layout, with what an exact resume needs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

MANIFEST, MOMENTS, REST = "manifest.json", "optimizer.moments", "trainer_state.pt"
WEIGHTS = "model.safetensors"
_NAME = re.compile(r"step-(\d+)")


@dataclass
class State:
    """Where a run is. The data position and the random numbers are functions of `step`.

    Attributes:
        step: optimizer steps done.
        global_batch: units a step, kept whatever number of workers comes back.
        best_loss, best_step: of the best evaluation so far.
        bad_evaluations: evaluations since then.
        skipped: batches left out because their loss or gradient was not finite.
        first_loss, eval_loss_before, eval_accuracy_before, exact_match_before, tasks_before: for
            the summary.
        data: name of the token cache that the run trains on.
        trained_as: method, with the bits of a quantized base; empty in older checkpoints.
        settings: of the run, by their dotted names; empty in older checkpoints.
        changes: of the settings when the run was resumed, a line each, with the step.
    """

    step: int = 0
    global_batch: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0
    skipped: int = 0
    first_loss: float | None = None
    eval_loss_before: float | None = None
    eval_accuracy_before: float | None = None
    exact_match_before: float | None = None
    tasks_before: dict[str, Any] | None = None
    data: str = ""
    trained_as: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


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


def write_state(folder: Path, state: State, rest: dict[str, Any]) -> None:
    """Write all that is neither weights nor moments: `rest` as `split_moments` gives it."""
    torch.save(rest, folder / REST)
    (folder / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")


def load(folder: Path) -> tuple[State, dict[str, Any]]:
    """State and tensors of a checkpoint."""
    tensors = torch.load(folder / REST, map_location="cpu", weights_only=True)
    # none of it is read from the disk before it is used
    for name, moment in load_file(folder / MOMENTS).items():
        weight, _, kind = name.rpartition(".")
        tensors["optimizer"]["state"][weight][kind] = moment
    return read_state(folder), tensors


def split_moments(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Optimizer and scaler state without the large tensors, and those by name."""
    optimizer, rest = tensors["optimizer"], {}
    moments: dict[str, torch.Tensor] = {}
    for weight, values in optimizer["state"].items():
        large = {kind: value for kind, value in values.items() if value.ndim}
        moments |= {f"{weight}.{kind}": value for kind, value in large.items()}
        rest[weight] = {kind: value for kind, value in values.items() if kind not in large}
    return tensors | {"optimizer": optimizer | {"state": rest}}, moments


def read_state(folder: Path) -> State:
    """The state in a checkpoint, without its tensors."""
    return State(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


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
