"""Wrong rows, told before torch is loaded: the first rows are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from aift_ray.config import DataConfig
from aift_ray.config.preference_config import Answers
from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.reader_options import reading_of
from aift_ray.data.readers.sources import expand_files, is_text, read_examples
from aift_ray.errors import DataError, Problem, UserError
from aift_ray.launch.early_template import Ask, ask_template, is_asked

# rows, of all files together, and files that are looked at: some 0.1 s
_ROWS, _FILES = 2000, 10
# rows that are looked at where the run is going to fail for something else
_MORE_ROWS = 5000
_NOT_ASKED = Problem(
    "chat template",
    "was not asked about the other rows yet: the model's tokenizer can't be read at once",
    "mend these rows first; the same command then tells what it refuses",
)


def wrong_rows(
    data: DataConfig, answers: Answers, model: str, failing: bool = False
) -> list[Problem]:
    """All wrong rows of all files, where one of the first rows is wrong; else nothing.

    Among them are those that only the chat template of `model` refuses, where it can be asked.

    Args:
        failing: something else is wrong, so that no row is read later: more rows are looked at,
            and files of other kinds than text, whose libraries take a moment to import.
    """
    files = _existing(data)
    reading, skips = reading_of(data, answers), data.on_bad_row == "skip"
    # the first row of a file that is one document is all of it
    whole = data.text_unit == "file"
    first = [path for path in files if not (whole and ".txt" in path.suffixes)]
    first = [path for path in first if failing or is_text(path)][:_FILES]
    rows = (_MORE_ROWS if failing else _ROWS) // max(1, len(first))
    if not any(_faults(islice(read_examples([path], reading), rows), skips) for path in first):
        return []
    items = read_examples(files, reading)
    return _told(_faults(items, skips)) if skips else _with_refused(items, data, model)


def _with_refused(items: Iterable[Example | Fault], data: DataConfig, model: str) -> list[Problem]:
    """Faults, and the rows that the chat template refuses, in their order."""
    asks, further, found = False, list[Problem](), list[Fault]()
    ask: Ask | None = None
    for item in items:
        if isinstance(item, Example) and is_asked(item):
            if not asks:
                asks = True
                try:
                    ask = ask_template(model, data)
                    further = [] if ask else [_NOT_ASKED]
                except UserError as error:
                    further = error.problems
            refused = ask(item) if ask else None
            found += [refused] if refused else []
        elif isinstance(item, Fault):
            found.append(item)
    return _told(found) + further


def _told(faults: Iterable[Fault]) -> list[Problem]:
    return [Problem(f"{f.file}:{f.line}" if f.line else f.file, f.reason, f.remedy) for f in faults]


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
