"""A second place for a run's checkpoints and results: a folder, or a bucket (s3://, gs://)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

from aift_ray.engine import checkpoint
from aift_ray.errors import Problem
from aift_ray.utils.filesystems import filesystem

# seconds to wait before each further try of a copy that failed
PAUSES = (1.0, 5.0, 20.0)


class CheckpointMirror:
    """The copy of one run's output folder.

    A checkpoint's manifest is copied last, so that one which is not whole has none.

    Args:
        place: folder or URI that holds the copies of all runs.
        name: of this run's folder there.

    Raises:
        ConfigError: `place` is no folder and no URI that pyarrow knows.
    """

    def __init__(self, place: str, name: str) -> None:
        self._files, root = filesystem(place, "ray.storage_path")
        self._root = f"{root.rstrip('/')}/{name}"

    def check(self) -> list[Problem]:
        """What speaks against writing there."""
        try:
            self._files.create_dir(self._root, recursive=True)
            with self._files.open_output_stream(f"{self._root}/.writable") as stream:
                stream.write(b"")
            self._files.delete_file(f"{self._root}/.writable")
        except OSError as error:
            what = f"can't be written: {_first_line(error)}"
            return [Problem("ray.storage_path", what, "check the place and its credentials")]
        return []

    def steps(self) -> list[int]:
        """Steps of the checkpoints there, oldest first; those that were copied to the end."""
        selector = fs.FileSelector(f"{self._root}/checkpoints", allow_not_found=True)
        names = [entry.base_name for entry in self._files.get_file_info(selector)]
        found = sorted(step for step in map(checkpoint.step_of, names) if step is not None)
        manifests = [f"{self._step(step)}/{checkpoint.MANIFEST}" for step in found]
        entries = self._files.get_file_info(manifests) if manifests else []
        return [s for s, e in zip(found, entries, strict=True) if e.type == fs.FileType.File]

    def put_checkpoint(self, folder: Path, kept: list[int]) -> None:
        """Copy a checkpoint, then remove those that are not in `kept`.

        Raises:
            OSError: again and again.
        """
        target = f"{self._root}/checkpoints/{folder.name}"
        patiently(lambda: self._put(folder, target, last=checkpoint.MANIFEST))
        for step in self.steps():
            if step not in kept:
                self._files.delete_dir(self._step(step))

    def put_results(self, output: Path, names: Collection[str] = ()) -> None:
        """Copy what an output folder holds beside its checkpoints: `names`, or all.

        Raises:
            OSError: again and again.
        """
        for path in sorted(output.iterdir()):
            hidden = path.name.startswith(".") or path.name == "checkpoints"
            if not hidden and (not names or path.name in names):
                patiently(partial(self._put, path, f"{self._root}/{path.name}"))

    def fetch(self, step: int, checkpoints: Path) -> Path:
        """Bring a checkpoint into folder `checkpoints`; it appears there whole or not at all."""
        final = checkpoints / f"step-{step}"
        scratch = checkpoints / f".step-{step}.fetched.{os.getpid()}"
        self._get(self._step(step), scratch)
        try:
            scratch.rename(final)
        except OSError:
            # another worker of this machine was faster
            shutil.rmtree(scratch)
        return final

    def fetch_results(self, output: Path) -> None:
        """Bring what lies beside the checkpoints into `output`, where it is not there yet."""
        for entry in self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True)):
            if entry.base_name != "checkpoints" and not (output / entry.base_name).exists():
                self._get(entry.path, output / entry.base_name)

    def _step(self, step: int) -> str:
        return f"{self._root}/checkpoints/step-{step}"

    def _put(self, source: Path, target: str, last: str = "") -> None:
        files = [p for p in source.rglob("*") if p.is_file()] if source.is_dir() else [source]
        for path in sorted(files, key=lambda p: (p.name == last, p)):
            part = "" if path == source else f"/{path.relative_to(source).as_posix()}"
            self._files.create_dir(os.path.dirname(target + part), recursive=True)
            self._copy(path, target + part)

    def _copy(self, path: Path, target: str) -> None:
        fs.copy_files(str(path), target, fs.LocalFileSystem(), self._files)

    def _get(self, source: str, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        is_folder = self._files.get_file_info(source).type == fs.FileType.Directory
        (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
        fs.copy_files(source, str(target), self._files, fs.LocalFileSystem())


def patiently(copy: Callable[[], Any]) -> None:
    """Copy, and try again when it fails; the last failure is raised."""
    for pause in PAUSES:
        try:
            copy()
            return
        except FileNotFoundError:
            # what should be copied is no longer wanted
            raise
        except OSError:
            time.sleep(pause)
    copy()


def newest(checkpoints: Path, store: CheckpointMirror | None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, here or in `store`, and what is wrong with newer ones.

    One that is only in the store is brought here first.
    """
    notes: list[str] = []
    here, there = checkpoint.steps(checkpoints), store.steps() if store else []
    for step in sorted({*here, *there}, reverse=True):
        folder = checkpoints / f"step-{step}"
        wrong = checkpoint.damage(folder) if step in here else "not in this folder"
        if wrong and store and step in there:
            shutil.rmtree(folder, ignore_errors=True)
            folder = store.fetch(step, checkpoints)
            notes.append(f"checkpoints/step-{step} was brought from the storage path ({wrong})")
            wrong = checkpoint.damage(folder)
        if wrong is None:
            return folder, notes
        notes.append(f"checkpoints/step-{step} is damaged ({wrong}); taking the one before")
    return None, notes


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
