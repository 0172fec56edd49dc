"""Data files in a bucket (s3://, gs://): brought to this machine once, and read from there."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs

from aift_ray.data.readers.sources import ABOUT, SUFFIXES
from aift_ray.errors import DataError, Problem
from aift_ray.utils.filesystems import filesystem

_PIECE = 1 << 20
# a key before the bucket's name, and what comes behind a question mark
_PRIVATE = re.compile(r"(?<=://)[^/@]*@|\?.*")


def brought(patterns: Sequence[str], cache: Path) -> list[str]:
    """`patterns`, with a local copy in place of each URI; a folder's files come in their order.

    A copy is named by its URI, size and time, so that one that is there is not fetched again.

    Raises:
        DataError: URIs that name nothing or can't be read; all of them at once.
    """
    problems: list[Problem] = []
    found: list[str] = []
    for pattern in patterns:
        if "://" not in pattern:
            found.append(pattern)
            continue
        try:
            files, path = filesystem(pattern, "data.train_files")
            entries = _entries(files, path)
            if not entries:
                problems.append(_problem(pattern, "names no file of rows"))
            found += [str(_fetched(files, entry, cache)) for entry in entries]
        except OSError as error:
            problems.append(_problem(pattern, str(error).splitlines()[0]))
    if problems:
        raise DataError(problems)
    return found


def _problem(uri: str, what: str) -> Problem:
    remedy = "name a file or folder that is there, and check the credentials"
    return Problem(_PRIVATE.sub("", uri), what, remedy)


def _entries(files: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """The files that a path names: itself, or those directly inside."""
    entry = files.get_file_info(path)
    if entry.type == fs.FileType.File:
        return [entry]
    inside = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    rows = [e for e in inside if e.type == fs.FileType.File and e.path.lower().endswith(SUFFIXES)]
    if any(each.base_name in ABOUT for each in rows):
        # of a folder of datasets.save_to_disk
        rows = [each for each in rows if each.base_name.startswith("data-")]
    return sorted(rows, key=lambda each: str(each.path))


def _fetched(files: fs.FileSystem, entry: fs.FileInfo, cache: Path) -> Path:
    about = f"{files.type_name} {entry.path} {entry.size} {entry.mtime_ns}"
    folder = cache / "remote" / hashlib.sha256(about.encode()).hexdigest()[:16]
    final = folder / str(entry.base_name)
    if final.is_file():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{uuid.uuid4().hex}"
    try:
        with files.open_input_stream(entry.path) as source, scratch.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE)
        scratch.rename(final)
    finally:
        scratch.unlink(missing_ok=True)
    return final
