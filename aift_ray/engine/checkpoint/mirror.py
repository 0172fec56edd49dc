"""A second place for a run's checkpoints and results: a folder, or a bucket (s3://, gs://)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from pyarrow import fs

from aift_ray.engine import checkpoint
from aift_ray.errors import Problem
from aift_ray.utils.filesystems import download, filesystem, upload


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

    def put_checkpoint(self, folder: Path) -> None:
        """Copy a checkpoint, then remove those that are no longer beside it.

        Raises:
            OSError: again and again.
        """
        self._put(folder, f"{self._root}/checkpoints/{folder.name}")
        kept = checkpoint.steps(folder.parent)
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
                self._put(path, f"{self._root}/{path.name}")

    def fetch(self, step: int, checkpoints: Path) -> Path:
        """Bring a checkpoint into folder `checkpoints`; it appears there whole or not at all."""
        final = checkpoints / f"step-{step}"
        scratch = checkpoints / f".step-{step}.fetched.{os.getpid()}"
        download(self._files, self._step(step), scratch)
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
                download(self._files, entry.path, output / entry.base_name)

    def _step(self, step: int) -> str:
        return f"{self._root}/checkpoints/step-{step}"

    def _put(self, source: Path, target: str) -> None:
        if source.is_file():
            upload(source, self._files, target)
        files = [path for path in source.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda p: (p.name == checkpoint.MANIFEST, p)):
            upload(path, self._files, f"{target}/{path.relative_to(source).as_posix()}")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
