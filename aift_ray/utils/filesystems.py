"""Places that are named by a folder or a URI (s3://, gs://)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import fs

from aift_ray.errors import ConfigError, Problem


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
