"""Places that are named by a folder or a URI (s3://, gs://), and copies of files there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from pyarrow import fs

from aift_ray.errors import ConfigError, Problem

# seconds to wait before each further try of a copy that failed
PAUSES = (1.0, 5.0, 20.0)


def filesystem(place: str, setting: str) -> tuple[Any, str]:
    """The file system of a folder or URI, and its path there.

    Raises:
        ConfigError: `place`, which `setting` has named, is neither.
    """
    try:
        if "://" in place:
            found: tuple[Any, str] = fs.FileSystem.from_uri(place)
            return found
        return fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
    except (ValueError, OSError) as error:
        remedy = "give a folder, s3://BUCKET/PATH or gs://BUCKET/PATH"
        raise ConfigError([Problem(setting, str(error), remedy)]) from error


def upload(path: Path, files: fs.FileSystem, target: str) -> None:
    """Copy a file to a place, and try again when that fails.

    Raises:
        FileNotFoundError: it is no longer there.
        OSError: again and again.
    """
    for pause in (*PAUSES, None):
        try:
            files.create_dir(os.path.dirname(target), recursive=True)
            fs.copy_files(str(path), target, fs.LocalFileSystem(), files)
            return
        except OSError as error:
            if pause is None or isinstance(error, FileNotFoundError):
                raise
            time.sleep(pause)


def download(files: fs.FileSystem, source: str, target: Path) -> None:
    """Put the copy of a file or folder of a place where nothing is, or something older."""
    shutil.rmtree(target, ignore_errors=True)
    is_folder = files.get_file_info(source).type == fs.FileType.Directory
    (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
    fs.copy_files(source, str(target), files, fs.LocalFileSystem())
