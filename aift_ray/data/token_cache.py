"""Token ids on disk: made once from the data files, memory-mapped by every worker.

A cache folder is named by the content that went into it (files, tokenizer, template, settings),
written beside its final name and renamed, so that two runs may make the same one at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aift_ray.config import DataConfig
from aift_ray.config.mixture_config import names
from aift_ray.config.preference_config import Answers
from aift_ray.data import memory_rows
from aift_ray.data.cache_location import cache_folder
from aift_ray.data.dataset_sets import Files, SetCounts, check_filled, check_sets, counted
from aift_ray.data.decontamination import Screen
from aift_ray.data.duplicates import DuplicateCounter
from aift_ray.data.examples import Example, Fault
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.readers.bucket_files import brought
from aift_ray.data.readers.column_names import corrected
from aift_ray.data.readers.reader_options import Reading, reading_of
from aift_ray.data.readers.row_schema import check_columns
from aift_ray.data.readers.sources import expand_files
from aift_ray.data.row_groups import Documents
from aift_ray.data.token_rows import Ids, TokenRows, write_rows
from aift_ray.data.tokenize import (
    Counts,
    Encode,
    Encoding,
    Encodings,
    encode_here,
)
from aift_ray.errors import ConfigError, DataError, Problem

VERSION = 4
# while a cache is made
_DIGESTS = "digests"
_GROUPS = "groups.npy"


@dataclass(frozen=True)
class Prepared:
    """A cache folder: `train` and `eval` rows of at most `sequence_length` tokens, and counts.

    Attributes:
        sets: what each set of a mixture holds, in the order of the rows; empty without a mixture.
    """

    folder: Path
    train: Counts
    eval: Counts
    warnings: list[str]
    sequence_length: int
    sets: list[SetCounts] = field(default_factory=list)

    def set_of(self) -> Ids | None:
        """The set of the mixture that each training row is of, shape (rows,); None without one."""
        if not self.sets:
            return None
        return np.repeat(np.arange(len(self.sets), dtype=np.int32), [s.rows for s in self.sets])

    def rows(self, name: str) -> TokenRows:
        """The rows of set `name`, train or eval."""
        return TokenRows(self.folder / f"{name}.arrow")

    def groups(self) -> Ids:
        """The group of each training row, shape (rows,); rows of one are not to be parted."""
        found: Ids = np.load(self.folder / _GROUPS)
        return found


def prepare(
    config: DataConfig,
    encoder: PromptEncoder,
    sequence_length: int,
    encode: Encode = encode_here,
    answers: Answers = "one",
) -> Prepared:
    """Tokenize the files of `config`, or find them tokenized.

    Args:
        encode: tokenizes examples, in their order; the cache is the same whoever does it.
        answers: what a row holds; of a pair, and of an answer with a label, two token rows come of
            it, one after the other; of a prompt one in which nothing is supervised.

    Raises:
        DataError: files that can't be read, wrong rows (unless they are to be skipped), rows
            that are too long where that is an error, or no supervised token at all.
    """
    check_columns(config)
    place = cache_folder(config)
    sets = [each.files for each in config.mixture] or [config.train_files]
    *found, evaluation, contamination = (
        expand_files(brought(patterns, place))
        for patterns in (*sets, config.eval_files, config.contamination_files)
    )
    files = Files(found, evaluation, contamination)
    check_sets(files)
    _check_sheet(config, [*files.train, *files.evaluation])
    folder = place / _key(config, encoder, sequence_length, files, answers)
    if not folder.is_dir():
        _build(folder, config, partial(encode, encoder), sequence_length, files, answers)
    # the time of its last use
    os.utime(folder)
    return load(folder)


def _check_sheet(config: DataConfig, files: Sequence[Path]) -> None:
    if any(path.suffix.lower() == ".xlsx" for path in files):
        return
    settings = (("sheet", config.sheet, None), ("hidden_rows", config.hidden_rows, "train"))
    what = "{} is named, and no file is an .xlsx one"
    problems = [
        Problem(f"data.{name}", what.format(value), "leave it out")
        for name, value, default in settings
        if value != default
    ]
    if problems:
        raise ConfigError(problems)


def _check_used(config: DataConfig, *readings: Reading) -> None:
    used = {key for reading in readings for key in reading.used}
    missing = [name for key, name in config.columns.items() if key not in used]
    if missing:
        what = f"no file has a column or key {' and '.join(missing)}"
        seen = {name for reading in readings for name in reading.seen}
        remedy = corrected(config.columns, sorted(seen))
        raise ConfigError([Problem("data.columns", what, remedy)])


def load(folder: Path) -> Prepared:
    """Open a cache folder that `prepare` made."""
    stored = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    train, held_out = (Counts(**stored[name]) for name in ("train", "eval"))
    sets = [SetCounts(**each) for each in stored["sets"]]
    return Prepared(folder, train, held_out, stored["warnings"], stored["sequence_length"], sets)


def _key(
    config: DataConfig,
    encoder: PromptEncoder,
    sequence_length: int,
    files: Files,
    answers: Answers,
) -> str:
    parts: list[Any] = [VERSION, encoder.digest(), sequence_length, answers]
    parts += [config.on_bad_row, config.on_long_row, config.text_unit]
    parts += [config.encoding, sorted(config.columns.items()), config.sheet]
    parts += [config.hidden_rows] if config.hidden_rows != "train" else []
    parts += [config.near_duplicates, config.near_duplicate_threshold]
    # without a split no row is held against the others of its set
    parts.append(bool(config.validation_fraction))
    parts.append([len(paths) for paths in files.sets] if config.mixture else None)
    parts.append(names(config.mixture))
    for paths in (files.train, files.evaluation, files.contamination):
        parts.append([[str(path), _file_digest(path)] for path in paths])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    held = memory_rows.content(path)
    if held is not None:
        return hashlib.sha256(held).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(
    folder: Path,
    config: DataConfig,
    encode: Callable[[Iterator[Example | Fault]], Encodings],
    sequence_length: int,
    files: Files,
    answers: Answers,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        duplicates = DuplicateCounter(scratch / _DIGESTS)
        looks = config.near_duplicates != "off"
        near = looks and config.validation_fraction > 0
        documents = Documents(scratch, config.near_duplicate_threshold if near else None)
        screen = _screen(config, files, answers) if looks else None
        made = (config, encode, sequence_length)
        train = Encoding(*made, duplicates.add_train, answers, documents, screen)
        held_out = Encoding(*made, duplicates.add_eval, answers)
        sets = [SetCounts(name) for name in names(config.mixture)]
        asked = answers == "prompt"
        rows = train.rows(files.train)
        rows = counted(rows, files, sets) if sets else rows
        write_rows(scratch / "train.arrow", rows, sources=asked)
        write_rows(scratch / "eval.arrow", held_out.rows(files.evaluation), sources=asked)
        _raise_for(_faults(config, [train, held_out], screen))
        _check_used(config, train.reading, held_out.reading)
        check_filled(sets)
        if not (train.counts.rows if asked else train.counts.supervised_tokens):
            raise DataError(
                [_nothing_asked(train.counts) if asked else _nothing_supervised(train.counts)]
            )
        np.save(scratch / _GROUPS, documents.groups())
        (scratch / "signatures").unlink(missing_ok=True)
        warnings = duplicates.warnings() + (screen.warnings() if screen else [])
        warnings += documents.warnings()
        stored: dict[str, Any] = {"train": asdict(train.counts), "eval": asdict(held_out.counts)}
        stored["sets"] = [asdict(each) for each in sets]
        stored |= {"warnings": warnings, "sequence_length": sequence_length}
        shutil.rmtree(scratch / _DIGESTS, ignore_errors=True)
        (scratch / "counts.json").write_text(json.dumps(stored, ensure_ascii=False), "utf-8")
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _screen(config: DataConfig, files: Files, answers: Answers) -> Screen | None:
    if not files.evaluation and not files.contamination:
        return None
    how = reading_of(config, answers)
    return Screen(config, files.evaluation, files.contamination, how)


def _faults(config: DataConfig, sets: list[Encoding], screen: Screen | None) -> list[Fault]:
    """What keeps the cache from being made."""
    faults: list[Fault] = []
    for each in sets:
        faults += each.faults if config.on_bad_row == "error" else []
        faults += [f for f in each.faults if f.line is None and f not in faults]
    return faults + (screen.faults if screen else [])


def _publish(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        # another run made the same content first
        if not folder.is_dir():
            raise


def _raise_for(faults: list[Fault]) -> None:
    if faults:
        raise DataError(
            Problem(memory_rows.place(f.file, f.line), f.reason, f.remedy) for f in faults
        )


def _nothing_asked(counts: Counts) -> Problem:
    return Problem(
        "training data",
        f"it has no usable prompt ({counts.dropped_rows} rows were dropped because the prompt is "
        "too long)",
        "raise --data.sequence_length, which holds prompt and completion",
    )


def _nothing_supervised(counts: Counts) -> Problem:
    return Problem(
        "training data",
        f"none of its {counts.rows} usable rows has a token to train on "
        f"({counts.dropped_rows} rows were dropped because the answer does not fit)",
        "raise --data.sequence_length, or check the rows with --dry-run",
    )
