"""Wrong rows of text files, told before torch is loaded: the first rows are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from aift_ray.config import DataConfig
from aift_ray.config.preference_config import Answers
from aift_ray.data.examples import Fault
from aift_ray.data.readers.reader_options import reading_of
from aift_ray.data.readers.sources import expand_files, is_text, read_examples
from aift_ray.errors import DataError, Problem

# rows of a file, and files, that are looked at
_ROWS, _FILES = 100, 10


def wrong_rows(data: DataConfig, answers: Answers) -> list[Problem]:
    """All wrong rows of all files, where one of the first rows is wrong; else nothing.

    What only the model's chat template refuses is not among them.
    """
    files = _existing(data)
    reading, skips = reading_of(data, answers), data.on_bad_row == "skip"
    # the first row of a file that is one document is all of it
    whole = data.text_unit == "file"
    first = [path for path in files if is_text(path) and not (whole and ".txt" in path.suffixes)]
    first = first[:_FILES]
    if not any(_faults(islice(read_examples([path], reading), _ROWS), skips) for path in first):
        return []
    found = _faults(read_examples(files, reading), skips)
    return [Problem(f"{f.file}:{f.line}" if f.line else f.file, f.reason, f.remedy) for f in found]


def _existing(data: DataConfig) -> list[Path]:
    """Files of this machine for training and evaluation; those that are missing are told apart."""
    mixed = [pattern for each in data.mixture for pattern in each.files]
    found: dict[Path, None] = {}
    for pattern in (*data.train_files, *mixed, *data.eval_files):
        try:
            found |= dict.fromkeys([] if "://" in pattern else expand_files([pattern]))
        except DataError:
            continue
    return list(found)


def _faults(items: Iterable[object], skips: bool) -> list[Fault]:
    faults = (item for item in items if isinstance(item, Fault))
    return [fault for fault in faults if fault.line is None or not skips]
