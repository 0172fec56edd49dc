"""The folder of a quantized model: refused, written beside, renamed."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aift_ray.errors import ConfigError, Problem

REPORT, PLOT = "quantization.json", "quantization.png"
# what travels from the model's folder as it is, byte for byte
_COMPANIONS = (
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "generation_config.json",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
)


def default_folder() -> Path:
    """A folder named by the time."""
    return Path("outputs", time.strftime("%Y%m%d-%H%M%S-quantized"))


def check(folder: Path, overwrite: bool, report: str = REPORT) -> list[Problem]:
    """What speaks against writing the result to `folder`.

    Args:
        report: the file by which a folder of an earlier result is known.
    """
    where = f"output folder {folder}"
    if folder.exists() and not folder.is_dir():
        return [Problem(where, "is a file", "name another folder")]
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            return [Problem(where, "is not empty", "name another folder, or give --overwrite")]
        if not (folder / report).is_file():
            what = f"contains something other than an earlier result (no {report})"
            return [Problem(where, what, "--overwrite does not remove that: name another folder")]
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return [Problem(where, f"can't be written: {parent}", "name another folder")]
    return []


@contextmanager
def beside(folder: Path, overwrite: bool = False, report: str = REPORT) -> Iterator[Path]:
    """An empty folder that becomes `folder` when all went well, and leaves no trace else.

    Args:
        report: as for `check`.

    Raises:
        ConfigError: `folder` can't be used.
    """
    folder = folder.expanduser().absolute()
    problems = check(folder, overwrite, report)
    if problems:
        raise ConfigError(problems)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (folder.parent / f".{folder.name}.{uuid.uuid4().hex}" for _ in range(2))
    scratch.mkdir()
    try:
        yield scratch
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template, generation settings and licence of a model folder."""
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target / path.name)
